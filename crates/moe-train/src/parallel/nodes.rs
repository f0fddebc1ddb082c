//! Ranks that are processes, on one machine or several, over the websockets of `burn-communication`.
//!
//! Rank 0 listens at the address of the coordinator; every other rank opens one connection to it and keeps it. A sum is a message from each
//! rank to rank 0, which adds them in the order of the ranks and answers with the sum. For `N` ranks and `n` bytes, `2 n` pass over the
//! connection of each, `2 (N - 1) n` through rank 0: right for a few machines.
//!
//! Nothing is authenticated or encrypted, and `burn-communication` listens on every interface of the machine: only in a network that is trusted.
//!
//! Why not the nodes of `burn-collective`: `docs/decisions/0006-ranks.md`.

use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use burn_communication::websocket::{WsClient, WsClientChannel, WsServer, WsServerChannel};
use burn_communication::{Address, CommunicationChannel, Message, ProtocolClient, ProtocolServer};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time;

use super::{Collective, Processes, RankError};

/// The path of the connections.
const ROUTE: &str = "ranks";
/// Bytes of a message at most: what the server takes is limited to 16 MiB.
const CHUNK: usize = 8 << 20;
/// How long the first words of a connection may take.
const GREETING: Duration = Duration::from_secs(10);
/// Between two attempts to reach a coordinator that is not there yet, and two looks at the processes that are to come.
const PAUSE: Duration = Duration::from_millis(200);

/// The place of a process among the ranks of a run.
#[derive(Clone, Debug)]
pub struct NodeSeat {
    /// Which of the ranks this is, from 0.
    pub rank: usize,
    /// How many there are.
    pub num_ranks: usize,
    /// Host and port of rank 0, `host:port`.
    pub coordinator: String,
    /// How long rank 0 waits for the others before one counts as lost. The others give rank 0 twice as long: it may be waiting itself, and then says
    /// for whom.
    pub limit: Duration,
    /// The other ranks, where rank 0 has started them: it does not wait for one that has ended.
    pub processes: Processes,
}

impl NodeSeat {
    /// # Errors
    ///
    /// A rank that is none of these, and an address without a port.
    pub fn check(&self) -> Result<(), RankError> {
        let Self { rank, num_ranks, coordinator, .. } = self;
        let fault = |reason| Err(RankError { rank: *rank, reason });
        if rank >= num_ranks {
            return fault(format!("of {num_ranks} ranks, counted from 0, it is none"));
        }
        port_of(coordinator).map_or_else(fault, |_| Ok(()))
    }
}

/// What a rank is about to train; all must be alike.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Hello {
    /// Program, version and backend: others round in another way, and ranks drift apart.
    pub program: String,
    /// Settings and data, in text.
    pub settings: String,
    /// Steps done.
    pub step: usize,
    /// CRC-32 of the weights.
    pub weights: u32,
}

/// The first message of a rank.
#[derive(Serialize, Deserialize)]
struct Greeting {
    rank: usize,
    num_ranks: usize,
    hello: Hello,
}

/// The answer.
#[derive(Serialize, Deserialize)]
enum Answer {
    Welcome,
    Refused(String),
}

/// One rank's connections.
pub struct Node<I: Backend> {
    seat: NodeSeat,
    /// Sums run one after the other.
    ends: Mutex<Ends>,
    runtime: Runtime,
    backend: PhantomData<I>,
}

enum Ends {
    /// Of rank 0: those of the other ranks, from 1.
    Others(Vec<WsServerChannel>),
    /// Of another rank: that to rank 0.
    Coordinator(Box<WsClientChannel>),
}

impl<I: Backend> Node<I> {
    /// Waits until all ranks have met, and makes sure that they train the same.
    ///
    /// # Errors
    ///
    /// A rank that does not come in time or trains something else, and what [`NodeSeat::check`] finds.
    pub fn meet(seat: &NodeSeat, hello: &Hello) -> Result<Self, RankError> {
        let failed = |reason: String| RankError { rank: seat.rank, reason };
        seat.check()?;
        // The server answers in a thread of its own.
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| failed(format!("no runtime for its connections: {error}")))?;
        let ends = match seat.rank {
            0 => runtime.block_on(gather(seat, hello)).map(Ends::Others),
            _ => runtime.block_on(join(seat, hello)).map(|end| Ends::Coordinator(Box::new(end))),
        };
        let ends = Mutex::new(ends.map_err(failed)?);
        Ok(Self { seat: seat.clone(), ends, runtime, backend: PhantomData })
    }
}

impl<I: Backend> Drop for Node<I> {
    fn drop(&mut self) {
        let ends = self.ends.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Whoever is gone already needs no goodbye.
        self.runtime.block_on(async {
            match ends {
                Ends::Others(others) => {
                    for other in others {
                        let _ = time::timeout(PAUSE, other.close()).await;
                    }
                }
                Ends::Coordinator(coordinator) => {
                    let _ = time::timeout(PAUSE, coordinator.close()).await;
                }
            }
        });
    }
}

impl<I: Backend> Collective<I> for Node<I> {
    fn rank(&self) -> usize {
        self.seat.rank
    }

    fn num_ranks(&self) -> usize {
        self.seat.num_ranks
    }

    /// In f32, whatever the dtype of `values`.
    fn sum(&self, values: Tensor<I, 1>) -> Result<Tensor<I, 1>, RankError> {
        let (device, dtype, [len]) = (values.device(), values.dtype(), values.dims());
        let own: Vec<f32> = values.cast(DType::F32).into_data().iter::<f32>().collect();
        let mut ends = self.ends.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let wait = Wait::from_now(if self.seat.rank == 0 { self.seat.limit } else { 2 * self.seat.limit });
        let sum = self.runtime.block_on(async {
            match &mut *ends {
                Ends::Others(others) => sum_of_all(others, own, wait).await,
                Ends::Coordinator(coordinator) => {
                    let coordinator = coordinator.as_mut();
                    let named = |error| format!("rank 0 {error}");
                    send(coordinator, &own, wait).await.map_err(named)?;
                    receive(coordinator, len, wait).await.map_err(named)
                }
            }
        });
        let sum = sum.map_err(|reason| RankError { rank: self.seat.rank, reason })?;
        Ok(Tensor::<I, 1>::from_data(TensorData::new(sum, [len]), &device).cast(dtype))
    }
}

/// Until when to wait for somebody.
#[derive(Clone, Copy)]
struct Wait {
    limit: Duration,
    until: Instant,
}

impl Wait {
    fn from_now(limit: Duration) -> Self {
        Self { limit, until: Instant::now() + limit }
    }

    fn left(self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// Rank 0's part of a sum.
async fn sum_of_all(others: &mut [WsServerChannel], own: Vec<f32>, wait: Wait) -> Result<Vec<f32>, String> {
    let mut sum = own;
    for (index, other) in others.iter_mut().enumerate() {
        let values = receive(other, sum.len(), wait).await.map_err(|error| format!("rank {} {error}", index + 1))?;
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    for (index, other) in others.iter_mut().enumerate() {
        send(other, &sum, wait).await.map_err(|error| format!("rank {} {error}", index + 1))?;
    }
    Ok(sum)
}

/// Rank 0 waits for all others.
async fn gather(seat: &NodeSeat, hello: &Hello) -> Result<Vec<WsServerChannel>, String> {
    let port = port_of(&seat.coordinator)?;
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let server = WsServer::new(port).route(ROUTE, {
        // A connection that comes when nobody waits any more is closed.
        move |connection: WsServerChannel| async move { drop(arrived.send(connection)) }
    });
    let serving = tokio::spawn(server.serve(std::future::pending::<()>()));
    let wait = Wait::from_now(seat.limit);
    let mut others = BTreeMap::new();
    while others.len() + 1 < seat.num_ranks {
        let mut connection = match time::timeout(wait.left().min(PAUSE), arrivals.recv()).await {
            Ok(Some(connection)) => connection,
            // Nobody can arrive any more: the server has ended.
            Ok(None) => {
                let reason = match serving.await {
                    Ok(Err(error)) => format!("{error:?}"),
                    other => format!("{other:?}"),
                };
                return Err(format!("it cannot listen on port {port}: {reason}"));
            }
            Err(_) if !wait.left().is_zero() => match seat.processes.ended() {
                Some((rank, status)) => return Err(format!("rank {rank} has ended before they met ({status})")),
                None => continue,
            },
            Err(_) => {
                let missing: Vec<_> = (1..seat.num_ranks).filter(|rank| !others.contains_key(rank)).collect();
                return Err(format!("ranks {missing:?} did not come within {:?}", seat.limit));
            }
        };
        // Whoever connects and says nothing does not keep the others waiting.
        let greeted = told::<_, Greeting>(&mut connection, Wait::from_now(wait.left().min(GREETING))).await;
        let Ok(greeting) = greeted else { continue };
        match refusal(seat, hello, &greeting, others.contains_key(&greeting.rank)) {
            None => drop(others.insert(greeting.rank, connection)),
            Some(reason) => {
                let _ = tell(&mut connection, &Answer::Refused(reason.clone()), Wait::from_now(GREETING)).await;
                return Err(format!("rank {} {reason}", greeting.rank));
            }
        }
    }
    for (rank, other) in &mut others {
        let told = tell(other, &Answer::Welcome, Wait::from_now(GREETING)).await;
        told.map_err(|error| format!("rank {rank} {error}"))?;
    }
    Ok(others.into_values().collect())
}

/// Why a rank cannot train with rank 0.
fn refusal(seat: &NodeSeat, hello: &Hello, greeting: &Greeting, taken: bool) -> Option<String> {
    let (found, num_ranks) = (&greeting.hello, seat.num_ranks);
    if greeting.num_ranks != num_ranks {
        Some(format!("was started for {} ranks, rank 0 for {num_ranks}", greeting.num_ranks))
    } else if !(1..num_ranks).contains(&greeting.rank) || taken {
        Some(format!("is one of 1 to {}, each once: give every process a --node of its own", num_ranks - 1))
    } else if found.program != hello.program {
        Some(format!("is {}, rank 0 {}: start the same program everywhere", found.program, hello.program))
    } else if found.settings != hello.settings {
        Some("has other settings or other data than rank 0: start all with the same options".into())
    } else if found.step != hello.step {
        Some(format!(
            "starts after step {}, rank 0 after step {}: all must see the same checkpoint",
            found.step, hello.step
        ))
    } else if found.weights != hello.weights {
        Some("starts from other weights than rank 0".into())
    } else {
        None
    }
}

/// Another rank finds rank 0.
async fn join(seat: &NodeSeat, hello: &Hello) -> Result<WsClientChannel, String> {
    let address: Address = format!("ws://{}", seat.coordinator).parse()?;
    let wait = Wait::from_now(seat.limit);
    let mut connection = loop {
        let left = wait.left();
        if let Ok(Some(connection)) = time::timeout(left, WsClient::connect(address.clone(), ROUTE)).await {
            break connection;
        }
        if left.is_zero() {
            return Err(format!("nobody answers at {} within {:?}", seat.coordinator, seat.limit));
        }
        time::sleep(PAUSE).await;
    };
    let greeting = Greeting { rank: seat.rank, num_ranks: seat.num_ranks, hello: hello.clone() };
    let named = |error| format!("rank 0 {error}");
    tell(&mut connection, &greeting, Wait::from_now(GREETING)).await.map_err(named)?;
    // Rank 0 answers when all have come.
    match told(&mut connection, Wait::from_now(2 * seat.limit)).await.map_err(named)? {
        Answer::Welcome => Ok(connection),
        Answer::Refused(reason) => Err(format!("it {reason}")),
    }
}

fn port_of(address: &str) -> Result<u16, String> {
    let port = address.rsplit_once(':').and_then(|(host, port)| if host.is_empty() { None } else { port.parse().ok() });
    port.ok_or_else(|| format!("`{address}` is no address: write host:port"))
}

async fn tell<C: CommunicationChannel>(to: &mut C, what: &impl Serialize, wait: Wait) -> Result<(), String> {
    let text = serde_json::to_vec(what).expect("a greeting is text");
    within(wait, to.send(Message::new(text.into()))).await
}

async fn told<C: CommunicationChannel, T: for<'a> Deserialize<'a>>(from: &mut C, wait: Wait) -> Result<T, String> {
    let bytes = next(from, wait).await?;
    serde_json::from_slice(&bytes).map_err(|error| format!("sent something else than was expected: {error}"))
}

async fn send<C: CommunicationChannel>(to: &mut C, values: &[f32], wait: Wait) -> Result<(), String> {
    for part in values.chunks(CHUNK / 4) {
        let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
        within(wait, to.send(Message::new(bytes.into()))).await?;
    }
    Ok(())
}

async fn receive<C: CommunicationChannel>(from: &mut C, len: usize, wait: Wait) -> Result<Vec<f32>, String> {
    let mut values = Vec::with_capacity(len);
    while values.len() < len {
        let bytes = next(from, wait).await?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        let expected = (len - values.len()).min(CHUNK / 4);
        if !rest.is_empty() || numbers.len() != expected {
            return Err(format!("sent {} bytes instead of {}: it trains something else", bytes.len(), 4 * expected));
        }
        values.extend(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)));
    }
    Ok(values)
}

/// The next message.
async fn next<C: CommunicationChannel>(from: &mut C, wait: Wait) -> Result<Vec<u8>, String> {
    match time::timeout(wait.left(), from.recv()).await {
        Ok(Ok(Some(message))) => Ok(message.data.to_vec()),
        Ok(Ok(None)) => Err("has ended".into()),
        Ok(Err(error)) => Err(format!("is gone: {error:?}")),
        Err(_) => Err(silent(wait.limit)),
    }
}

async fn within<E: std::fmt::Debug>(wait: Wait, sent: impl Future<Output = Result<(), E>>) -> Result<(), String> {
    match time::timeout(wait.left(), sent).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("is gone: {error:?}")),
        Err(_) => Err(silent(wait.limit)),
    }
}

fn silent(limit: Duration) -> String {
    format!("has been silent for {} s (--rank-timeout)", limit.as_secs_f64())
}

#[cfg(test)]
mod tests;
