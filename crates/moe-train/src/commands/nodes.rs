//! Several ranks on the command line: the processes of `train --launch` and `--node`, the threads of `--devices`.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read};
use std::net::TcpListener;
use std::num::NonZero;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;
use std::time::Duration;

use super::say;
use crate::{
    cli::{RankArgs, TrainArgs},
    error::Error,
    parallel::{FAREWELL, NodeSeat, Party, Processes, RankError, Watch},
    progress,
    run::{Checkpoints, RunConfig, inspect},
    trainer::TrainError,
};

/// What bounds the threads of a process on a CPU.
const THREADS: &str = "RAYON_NUM_THREADS";

/// How long another rank may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// How long rank 0 may take to end once it has let go of a launched process, which then speaks for it.
const SILENCE: Duration = Duration::from_secs(2);

/// The place of this process among others, if it is to have one.
pub(super) fn seat(args: &RankArgs) -> Result<Option<NodeSeat>, Error> {
    let limit = limit(args);
    if let Some(num_ranks) = args.launch {
        let coordinator = format!("127.0.0.1:{}", free_port()?);
        return Ok(Some(NodeSeat { rank: 0, num_ranks, coordinator, limit, processes: Processes::default() }));
    }
    let (Some(rank), Some(num_ranks), Some(coordinator)) = (args.node, args.nodes, &args.coordinator) else {
        return Ok(None);
    };
    let seat = NodeSeat { rank, num_ranks, coordinator: coordinator.clone(), limit, processes: Processes::default() };
    seat.check().map_err(TrainError::from)?;
    Ok(Some(seat))
}

/// Who trains: the processes of `seat`, or a thread for each device.
pub(super) fn party<'a, D>(args: &RankArgs, seat: Option<&'a NodeSeat>, devices: &'a [D]) -> Party<'a, D> {
    match seat {
        Some(seat) => Party::Nodes(seat, &devices[0]),
        None => Party::Threads(devices, Some(Watch { limit: limit(args), grace: GRACE, give_up })),
    }
}

/// Ends a program of which a thread hangs.
fn give_up(lost: RankError) {
    progress::leave_terminal();
    eprintln!("error: {}", Error::from(TrainError::Ranks(lost)));
    std::process::exit(1)
}

fn limit(args: &RankArgs) -> Duration {
    Duration::from_secs(args.rank_timeout.into())
}

/// The run that a rank goes on with, read only.
pub(super) fn checkpoints(args: &TrainArgs) -> Result<Option<(Checkpoints, RunConfig)>, Error> {
    let open = |dir: &Path| -> Result<_, Error> { Ok(inspect(dir)?) };
    args.resume.as_deref().map(open).transpose()
}

/// Says who listens where, to whoever reads.
pub(super) fn announce(seat: &NodeSeat) -> Result<(), Error> {
    let NodeSeat { rank, num_ranks, coordinator, .. } = seat;
    say(format!("ranks   {num_ranks} processes, this is rank {rank}; they meet at {coordinator}"))?;
    if *rank > 0 {
        return Ok(());
    }
    say(
        "        rank 0 listens there on all interfaces, without authentication or encryption: only in a network you trust",
    )
}

/// Keeps what `burn-communication` would log off stdout, where it puts it as soon as it serves.
fn keep_quiet() {
    // Where somebody listens already, that one decides.
    let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new());
}

/// Ends this process with the one that launched it, however that ends: also before they have met. If rank 0 could not say why, this process does.
pub(super) fn end_with_parent(args: &RankArgs) {
    if args.launched {
        let speaks = speaks_for_rank_0(args);
        std::thread::spawn(move || {
            let mut heard = Vec::new();
            // An error is an end as well.
            let _ = io::stdin().read_to_end(&mut heard);
            if !heard.contains(&FAREWELL) && speaks {
                eprintln!("error: rank 0 is gone, and with it this rank; checkpoints are intact, go on with --resume");
            }
            std::process::exit(1)
        });
    }
}

/// One of those that it has launched is enough.
fn speaks_for_rank_0(args: &RankArgs) -> bool {
    args.node == Some(1)
}

/// What a launched process leaves to say to rank 0, which shares its stderr: that it lost the others, and that a number is not finite, as it is on every
/// rank. Unless rank 0 says nothing: then the silence is what ended this process.
pub(super) fn leave_word_to_rank_0(args: &RankArgs, ended: Result<(), Error>) -> Result<(), Error> {
    match ended {
        Err(Error::Train(TrainError::Ranks(_) | TrainError::NotFinite { .. })) if args.launched => {
            // Where rank 0 ends, this process does.
            std::thread::sleep(SILENCE);
            if speaks_for_rank_0(args) { ended } else { std::process::exit(1) }
        }
        ended => ended,
    }
}

/// What rank 0 does before it waits for the others: says where it listens, and starts them if that was asked for.
pub(super) fn start(args: &RankArgs, seat: &NodeSeat) -> Result<Launched, Error> {
    announce(seat)?;
    keep_quiet();
    let launched = Launched(seat.processes.clone());
    if args.launch.is_some() {
        launch(seat).map_err(|source| Error::Launch { source })?;
    }
    Ok(launched)
}

/// Starts this program again for every other rank of `seat`, with the same options.
fn launch(seat: &NodeSeat) -> io::Result<()> {
    let program = env::current_exe()?;
    let threads = available_parallelism().map_or(1, NonZero::get).div_ceil(seat.num_ranks);
    for rank in 1..seat.num_ranks {
        let mut command = Command::new(&program);
        command.args(without_launch(env::args_os().skip(1)));
        command.args(["--node", &rank.to_string(), "--nodes", &seat.num_ranks.to_string()]);
        command.args(["--coordinator", &seat.coordinator, "--launched"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        if env::var_os(THREADS).is_none() {
            command.env(THREADS, threads.to_string());
        }
        // A key that interrupts rank 0 is not for them: they end when it has saved.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        seat.processes.push(command.spawn()?);
    }
    Ok(())
}

/// Ends the processes of `--launch` with rank 0.
pub(super) struct Launched(Processes);

impl Drop for Launched {
    fn drop(&mut self) {
        self.0.end(GRACE);
    }
}

/// The arguments but `--launch N`.
fn without_launch(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut skip_next = false;
    args.filter(|arg| {
        let is_value = std::mem::take(&mut skip_next);
        skip_next = arg == "--launch";
        !(is_value || skip_next || arg.to_string_lossy().starts_with("--launch="))
    })
    .collect()
}

/// A port that nobody listens on just now.
fn free_port() -> Result<u16, Error> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    Ok(port.map_err(|source| Error::Launch { source })?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_processes_get_all_options_but_launch() {
        let kept = |args: &[&str]| -> Vec<String> {
            let args = without_launch(args.iter().map(OsString::from));
            args.into_iter().map(|arg| arg.into_string().expect("text")).collect()
        };
        assert_eq!(kept(&["train", "--launch", "3", "--seed", "3"]), ["train", "--seed", "3"]);
        assert_eq!(kept(&["train", "--launch=3", "--out", "--launchpad"]), ["train", "--out", "--launchpad"]);
    }

    #[test]
    fn a_place_is_named_whole_and_exists() {
        let args = |node, nodes| RankArgs {
            node: Some(node),
            nodes: Some(nodes),
            coordinator: Some("a:1".into()),
            launch: None,
            rank_timeout: 5,
            launched: false,
        };
        let found = seat(&args(1, 2)).expect("a place").expect("among others");
        assert_eq!((found.rank, found.num_ranks, found.limit), (1, 2, Duration::from_secs(5)));
        assert!(seat(&args(2, 2)).is_err_and(|error| error.to_string().contains("it is none")));
        let alone = RankArgs { rank_timeout: 5, ..RankArgs::default() };
        assert!(seat(&alone).expect("no place").is_none());
        let launched = seat(&RankArgs { launch: Some(3), ..alone }).expect("a port").expect("among others");
        assert_eq!((launched.rank, launched.num_ranks), (0, 3));
    }
}
