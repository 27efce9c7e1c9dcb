//! How much a carrier moves to a peer: fillers are sent as packets are, and counted where packets arrive.
//!
//! A filler is a frame of its own kind, on the datagram path and on the stream; its body is the number of the round and zeros.
//! The receiving end counts those of the round that it agreed to, up to the bytes that it agreed to, and drops all others.
//! Nothing is answered by it: what arrived is asked for ([`Links::filled`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::send::Datagrams;
use super::{Key, Link, Links, lock};
use crate::packet::DropCounts;
use crate::wire::frame;

/// Bytes of a filler in front of its zeros: the number of the round.
const ROUND: usize = 4;
/// Bytes of the body of one filler on a stream.
const STREAM_BODY: usize = 16 * 1024;
/// Bytes that may wait in front of a stream while it is filled.
const STREAM_AHEAD: usize = 128 * 1024;
/// The time between two looks at what waits there.
const STREAM_LOOK: Duration = Duration::from_millis(1);
/// The pace is kept to this.
const GRAIN: Duration = Duration::from_micros(500);
/// Datagrams handed to the kernel in one call.
const BURST: u64 = 32;

/// What arrived of one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filled {
    /// The number of the round.
    pub round: u32,
    /// Fillers that arrived.
    pub frames: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// The time from the first of them to the last.
    pub span: Duration,
}

/// What was sent of one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Fillers that were handed to the carrier.
    pub frames: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// What is to be sent of one round.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// The number of the round.
    pub round: u32,
    /// The most bytes of bodies.
    pub bytes: u64,
    /// Bytes of bodies a second on the datagram path, which takes whatever it is given; none for as many as can be sealed. A
    /// stream sets its own pace.
    pub pace: Option<u64>,
    /// The longest that it is sent.
    pub limit: Duration,
}

impl Load {
    /// How long to wait after so many bytes in so much time to keep the pace; none where it is behind it.
    fn is_ahead(&self, sent: u64, elapsed: Duration) -> Option<Duration> {
        let micros = sent.saturating_mul(1_000_000).checked_div(self.pace?)?;
        Duration::from_micros(micros)
            .checked_sub(elapsed)
            .filter(|ahead| *ahead > GRAIN)
    }
}

/// The round that a link counts; nothing until one was agreed to.
#[derive(Debug, Default)]
pub(super) struct Fill(Mutex<Option<Round>>);

#[derive(Debug)]
struct Round {
    filled: Filled,
    /// Bytes that may still be counted.
    left: u64,
    first: Option<Instant>,
}

impl Fill {
    fn begin(&self, round: u32, bytes: u64) {
        *lock(&self.0) = Some(Round {
            filled: Filled {
                round,
                ..Filled::default()
            },
            left: bytes,
            first: None,
        });
    }

    fn read(&self) -> Filled {
        lock(&self.0)
            .as_ref()
            .map(|round| round.filled)
            .unwrap_or_default()
    }

    /// A filler arrived; `body` is the whole of its body.
    pub(super) fn count(&self, body: &[u8]) {
        let Some((number, _)) = body.split_first_chunk::<ROUND>() else {
            return;
        };
        let bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let mut agreed = lock(&self.0);
        let Some(round) = agreed
            .as_mut()
            .filter(|round| round.filled.round == u32::from_be_bytes(*number))
        else {
            return;
        };
        let Some(left) = round.left.checked_sub(bytes) else {
            return;
        };
        let now = Instant::now();
        let first = *round.first.get_or_insert(now);
        round.left = left;
        round.filled.frames = round.filled.frames.saturating_add(1);
        round.filled.bytes = round.filled.bytes.saturating_add(bytes);
        round.filled.span = now.saturating_duration_since(first);
    }
}

/// A filler's body of `bytes` bytes in that round.
fn body(round: u32, bytes: usize) -> Vec<u8> {
    let mut body = vec![0; bytes.max(ROUND)];
    if let Some(number) = body.first_chunk_mut::<ROUND>() {
        *number = round.to_be_bytes();
    }
    body
}

impl Links {
    /// Counts the fillers of that round that the peer sends from now on, up to so many bytes. It replaces the round before.
    pub fn expect_filler(&self, key: Key, round: u32, bytes: u64) {
        self.link(key).fill.begin(round, bytes);
    }

    /// What has arrived of the round that is counted.
    pub fn filled(&self, key: Key) -> Filled {
        self.link(key).fill.read()
    }

    /// Sends fillers over the carrier that packets take now, as `load` says. None where there is no carrier.
    ///
    /// # Cancel safety
    /// What is under way on the datagram path is sent all the same, until its limit.
    pub async fn fill(&self, key: Key, load: Load) -> Option<Sent> {
        let link = self.link(key);
        if link.route().is_some() {
            let links = self.clone();
            let filling = move || links.fill_datagrams(&link, load);
            return self.runtime().spawn_blocking(filling).await.ok()?;
        }
        self.fill_stream(&link, load).await
    }

    /// Seals fillers as packets are sealed; on a thread of its own.
    fn fill_datagrams(&self, link: &Link, load: Load) -> Option<Sent> {
        // What the kernel does not take of it is no loss of the subnet's packets.
        let mut out = Datagrams::new(
            self.0.port.as_ref()?,
            self.0.heard.clone(),
            Arc::new(DropCounts::default()),
        );
        let (start, mut sent) = (Instant::now(), Sent::default());
        let mut filler = Vec::new();
        while start.elapsed() < load.limit {
            // The path may change, and its key, while it is filled.
            let Some(route) = link.route() else { break };
            if filler.len() != route.inner() {
                filler = body(load.round, route.inner());
            }
            let size = u64::try_from(filler.len()).unwrap_or(u64::MAX);
            for _ in 0..BURST {
                if sent.bytes.saturating_add(size) > load.bytes
                    || !out.fill(&route, link.key, &filler)
                {
                    out.flush();
                    return Some(sent);
                }
                sent.frames = sent.frames.saturating_add(1);
                sent.bytes = sent.bytes.saturating_add(size);
                if load.is_ahead(sent.bytes, start.elapsed()).is_some() {
                    break;
                }
            }
            out.flush();
            if let Some(ahead) = load.is_ahead(sent.bytes, start.elapsed()) {
                std::thread::sleep(ahead);
            }
        }
        Some(sent)
    }

    /// Queues fillers in front of the stream, never so many that packets would be dropped for them.
    async fn fill_stream(&self, link: &Link, load: Load) -> Option<Sent> {
        let filler = frame::filler(&body(load.round, STREAM_BODY));
        let size = u64::try_from(STREAM_BODY).unwrap_or(u64::MAX);
        let (start, mut sent) = (Instant::now(), Sent::default());
        while start.elapsed() < load.limit && sent.bytes.saturating_add(size) <= load.bytes {
            let waiting = {
                let state = lock(&link.state);
                state.writer.as_ref().map(|_| state.queue.bytes())
            };
            if waiting? > STREAM_AHEAD {
                tokio::time::sleep(STREAM_LOOK).await;
                continue;
            }
            self.send_frame(link, &filler);
            sent.frames = sent.frames.saturating_add(1);
            sent.bytes = sent.bytes.saturating_add(size);
        }
        Some(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agreed_round_counts_and_only_up_to_the_agreed_bytes() {
        let fill = Fill::default();
        fill.count(&body(1, 100));
        assert_eq!(fill.read(), Filled::default(), "nothing was agreed to");
        fill.begin(2, 250);
        for round in [1, 2, 3, 2, 2, 2] {
            fill.count(&body(round, 100));
        }
        fill.count(&[0, 0, 2]);
        let filled = fill.read();
        assert_eq!((filled.round, filled.frames, filled.bytes), (2, 2, 200));
        fill.begin(3, 250);
        assert_eq!(fill.read().frames, 0, "a new round begins at nothing");
    }
}
