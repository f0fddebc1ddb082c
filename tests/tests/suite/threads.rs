//! The ops of the CPU backends under chosen numbers of threads: the oracle for each, and two runs bit for bit.
//!
//! How work is divided depends on the number of threads, so a machine with few processors would see few of the divisions.

use moe_kernels::{Activation, AutodiffMoeBackend};
use moe_tests::{CASES, Case, LARGE_CASES, random};
use rayon::ThreadPoolBuilder;

use crate::expert_ffn::{Inputs, check, problem};

const THREADS: [usize; 5] = [1, 2, 3, 7, 8];

/// One expert has all rows and is shared by all threads; the others are idle.
const SKEWED: Case =
    Case { name: "one of 64 owns all", tokens: 600, experts: 64, top_k: 1, d_model: 20, d_hidden: 12, busy: 1 };

/// Two thirds of the rows go to two of many experts.
const UNEVEN: Case =
    Case { name: "two thirds to two of 16", tokens: 150, experts: 16, top_k: 3, d_model: 130, d_hidden: 70, busy: 16 };

fn cases() -> Vec<Case> {
    let named = |name| CASES.iter().chain(LARGE_CASES).find(|case| case.name == name).expect("in the catalogue");
    vec![*named("wide"), *named("several blocks of rows"), SKEWED, UNEVEN]
}

fn in_pools(run: impl Fn(usize) + Sync) {
    for threads in THREADS {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        pool.install(|| run(rayon::current_num_threads()));
    }
}

fn every_number_of_threads_matches_the_loop_over_slots<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in cases() {
        let mut problem = problem(&case, Activation::SwiGlu, true);
        if case.name == UNEVEN.name {
            problem.experts.chunks_exact_mut(3).for_each(|chosen| chosen[..2].copy_from_slice(&[4, 9]));
        }
        in_pools(|threads| {
            let name = format!("{}, {threads} threads", case.name);
            check::<B>(&name, &problem, case.experts, true, device);
        });
    }
}

fn two_runs_give_the_same_bits_with_any_number_of_threads<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in cases() {
        let (problem, weight) = (problem(&case, Activation::SwiGlu, true), random(case.tokens * case.d_model, 3));
        let run = || {
            let inputs = Inputs::<B>::new(&problem, case.experts, true, device);
            let output = inputs.output();
            (moe_tests::host(output.clone()), inputs.gradients(output, &weight))
        };
        in_pools(|threads| assert_eq!(run(), run(), "{}, {threads} threads", case.name));
    }
}

#[cfg(feature = "flex")]
mod flex {
    #[test]
    fn every_number_of_threads_matches_the_loop_over_slots() {
        super::every_number_of_threads_matches_the_loop_over_slots::<moe_tests::Flex>(&Default::default());
    }

    #[test]
    fn two_runs_give_the_same_bits_with_any_number_of_threads() {
        super::two_runs_give_the_same_bits_with_any_number_of_threads::<moe_tests::Flex>(&Default::default());
    }
}

#[cfg(feature = "ndarray")]
mod ndarray {
    #[test]
    fn every_number_of_threads_matches_the_loop_over_slots() {
        super::every_number_of_threads_matches_the_loop_over_slots::<moe_tests::NdArray>(&Default::default());
    }

    #[test]
    fn two_runs_give_the_same_bits_with_any_number_of_threads() {
        super::two_runs_give_the_same_bits_with_any_number_of_threads::<moe_tests::NdArray>(&Default::default());
    }
}
