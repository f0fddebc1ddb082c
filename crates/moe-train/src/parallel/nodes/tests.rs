use std::net::TcpListener;

use burn::backend::Flex;

use super::*;

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

fn seats(num_ranks: usize, limit: Duration) -> Vec<NodeSeat> {
    let coordinator = format!("127.0.0.1:{}", free_port());
    let seat =
        |rank| NodeSeat { rank, num_ranks, coordinator: coordinator.clone(), limit, processes: Processes::default() };
    (0..num_ranks).map(seat).collect()
}

fn hello() -> Hello {
    Hello { program: "moe-train".into(), settings: "the same".into(), step: 3, weights: 7 }
}

const LONG: Duration = Duration::from_secs(60);

/// What each rank makes of its connections.
fn meet<T: Send>(
    seats: &[NodeSeat],
    hello: impl Fn(usize) -> Hello + Sync,
    then: impl Fn(Node<Flex>) -> T + Sync,
) -> Vec<Result<T, RankError>> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            seats.iter().map(|seat| scope.spawn(|| Node::meet(seat, &hello(seat.rank)).map(&then))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

#[test]
fn every_rank_has_the_sum_in_the_order_of_the_ranks() {
    // Added in another order, these lose the one: 1e8 + 1 is 1e8 in f32.
    let of = |rank: usize| [[1e8f32, -1e8, 1.0][rank], rank as f32];
    let sums = meet(
        &seats(3, LONG),
        |_| hello(),
        |node| {
            let sum = || node.sum(Tensor::from_floats(of(node.rank()), &Default::default())).expect("all are there");
            assert_eq!(sum().into_data(), sum().into_data());
            sum().into_data().to_vec::<f32>().expect("f32")
        },
    );
    sums.into_iter().for_each(|sum| assert_eq!(sum.expect("they met"), [1.0, 3.0]));
}

#[test]
fn more_than_a_message_holds_arrives_whole() {
    let len = CHUNK / 4 + 5;
    let sums = meet(
        &seats(2, LONG),
        |_| hello(),
        |node| {
            let values: Vec<f32> = (0..len).map(|at| (at % 1000) as f32).collect();
            let values = Tensor::from_data(TensorData::new(values, [len]), &Default::default());
            node.sum(values).expect("all are there").into_data().to_vec::<f32>().expect("f32")
        },
    );
    for sum in sums {
        let sum = sum.expect("they met");
        assert!(sum.len() == len && sum.iter().enumerate().all(|(at, value)| *value == 2.0 * (at % 1000) as f32));
    }
}

#[test]
fn ranks_that_do_not_train_the_same_part_before_the_first_step() {
    let others = [
        (Hello { program: "another".into(), ..hello() }, "is another, rank 0 moe-train"),
        (Hello { settings: "others".into(), ..hello() }, "other settings or other data"),
        (Hello { step: 4, ..hello() }, "starts after step 4, rank 0 after step 3"),
        (Hello { weights: 8, ..hello() }, "other weights"),
    ];
    for (other, reason) in others {
        let of = |rank| if rank == 1 { other.clone() } else { hello() };
        for error in meet(&seats(2, LONG), of, |_| ()) {
            let error = error.expect_err("they differ").to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
    let mut twice = seats(3, LONG);
    twice[2].rank = 1;
    let errors = meet(&twice, |_| hello(), |_| ());
    assert!(errors[0].as_ref().is_err_and(|error| error.reason.contains("--node of its own")));
}

#[test]
fn a_rank_that_leaves_or_is_silent_is_named_in_time() {
    let limit = Duration::from_millis(1500);
    let outcomes = meet(
        &seats(2, limit),
        |_| hello(),
        |node| {
            // The other one leaves without a sum.
            (node.rank() == 0).then(|| node.sum(Tensor::ones([2], &Default::default())).err().map(|error| error.reason))
        },
    );
    let reason = outcomes.into_iter().next().and_then(|outcome| outcome.expect("they met")).flatten();
    assert!(reason.as_ref().is_some_and(|reason| reason.starts_with("rank 1 ")), "{reason:?}");

    let outcomes = meet(
        &seats(2, limit),
        |_| hello(),
        |node| match node.rank() {
            0 => node.sum(Tensor::ones([2], &Default::default())).err().map(|error| error.reason),
            _ => {
                std::thread::sleep(3 * limit);
                None
            }
        },
    );
    let reason = outcomes.into_iter().next().and_then(|outcome| outcome.expect("they met"));
    assert_eq!(reason.as_deref(), Some("rank 1 has been silent for 1.5 s (--rank-timeout)"));
}

#[test]
fn of_three_ranks_the_silent_one_is_named_by_rank_0_alone() {
    let limit = Duration::from_millis(1500);
    let outcomes = meet(
        &seats(3, limit),
        |_| hello(),
        |node| {
            let (rank, started) = (node.rank(), Instant::now());
            if rank == 1 {
                std::thread::sleep(3 * limit);
                return None;
            }
            let error = node.sum(Tensor::ones([CHUNK], &Default::default())).expect_err("one is silent");
            assert!(started.elapsed() < 2 * limit, "rank {rank} took {:?}", started.elapsed());
            Some(error.reason)
        },
    );
    let reasons: Vec<_> = outcomes.into_iter().map(|outcome| outcome.expect("they met")).collect();
    assert_eq!(reasons[0].as_deref(), Some("rank 1 has been silent for 1.5 s (--rank-timeout)"));
    let second = reasons[2].as_deref().expect("it waited");
    assert!(second.starts_with("rank 0 ") && !second.contains("silent"), "{second}");
}

#[test]
fn nobody_to_meet_is_an_error_after_the_limit() {
    let limit = Duration::from_millis(300);
    for seat in seats(2, limit) {
        let error = Node::<Flex>::meet(&seat, &hello()).err().expect("alone").reason;
        assert!(error.contains("did not come within") || error.contains("nobody answers at"), "{error}");
    }
    let fault = |seat: NodeSeat| Node::<Flex>::meet(&seat, &hello()).err().expect("no place").reason;
    let seat = || seats(2, limit).remove(1);
    assert!(fault(NodeSeat { coordinator: "nowhere".into(), ..seat() }).contains("write host:port"));
    assert!(fault(NodeSeat { rank: 2, ..seat() }).contains("it is none"));
}

#[test]
#[cfg(unix)]
fn rank_0_does_not_wait_for_a_process_that_has_ended() {
    let (started, seat) = (Instant::now(), seats(3, LONG).remove(0));
    for script in ["exec sleep 60", "exit 7"] {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).stdin(std::process::Stdio::piped());
        seat.processes.push(command.spawn().expect("there is a shell"));
    }
    let error = Node::<Flex>::meet(&seat, &hello()).err().expect("one has ended").reason;
    assert_eq!(error, "rank 2 has ended before they met (exit status: 7)");
    seat.processes.end(Duration::from_millis(100));
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert_eq!(seat.processes.ended().map(|(rank, status)| (rank, status.code())), Some((1, None)), "it was killed");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let seat = NodeSeat { coordinator: format!("127.0.0.1:{port}"), ..seats(2, LONG).remove(0) };
    let error = Node::<Flex>::meet(&seat, &hello()).err().expect("it is taken").reason;
    assert!(error.contains(&format!("cannot listen on port {port}")), "{error}");
}
