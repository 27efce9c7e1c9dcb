//! Measures the bandwidth of the carrier to a peer: rounds of fillers are sent until one takes long enough to be timed. The
//! answering end agrees to each round first, and counts what arrives. The first round is sent at once. Each later one has a
//! pace that follows from the round before: faster where all of it arrived, hardly faster where some was lost, because a rate
//! limit lets a short burst pass whole.
//!
//! Limits: for each member [`BUDGET`], in bytes; one measurement of our own runs at a time, of at most [`MOST`] bytes and
//! [`TIME`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Call, Handler, Method, Service, Unanswered};
use crate::limit::{Buckets, Limit};
use crate::link::measure::{Filled, Load};
use crate::link::{Key, Links};
use crate::model::id::PeerId;
use crate::p2p::AskError;
use crate::wire::service::{Measure, Measured, Refusal, ServiceCode, kind};

/// Bytes of the largest question.
const QUESTION: usize = 64;
/// Bytes that a member may have counted at once, and in each second after that.
const BUDGET: Limit = Limit::new(64 * 1024 * 1024, 1024 * 1024);
/// Members whose use is remembered.
const MEMBERS: usize = 1024;
/// Bytes of the first round, and the least of any.
const FIRST: u64 = 256 * 1024;
/// The most bytes of one round.
const LARGEST: u64 = 12 * 1024 * 1024;
/// Seconds that a round is meant to take: a little more than [`ENOUGH`].
const AIM: f64 = 0.3;
/// The share of a round above which what is lost is the path's limit.
const LOSSY: f64 = 0.05;
/// The most bytes of all rounds together.
const MOST: u64 = 32 * 1024 * 1024;
/// A round that takes so long is long enough to be timed.
const ENOUGH: Duration = Duration::from_millis(200);
/// How long one round may be sent.
const ROUND_TIME: Duration = Duration::from_secs(1);
/// How long all rounds together may take; the last may end later by one question.
const TIME: Duration = Duration::from_secs(8);
/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nothing more comes of a round of which nothing came for so long.
const SILENCE: Duration = Duration::from_millis(400);
/// The longest that what comes of a round is waited for.
const WAIT: Duration = Duration::from_secs(4);
/// The time between two looks at what came.
const LOOK: Duration = Duration::from_millis(10);

/// What is measured here at a time, and for whom.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    links: Links,
    budgets: Arc<Mutex<Buckets<PeerId>>>,
    own: Arc<Semaphore>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotMeasured {
    /// Another measurement of this machine runs.
    #[error("another measurement runs on this machine")]
    Busy,
    /// The peer did not agree, or did not answer.
    #[error(transparent)]
    Peer(#[from] Unanswered),
    /// Nothing carries packets to the peer, or none of them arrived.
    #[error("nothing that was sent to measure arrived")]
    Nothing,
}

impl Meter {
    pub(crate) fn new(links: Links) -> Meter {
        Meter {
            links,
            budgets: Arc::new(Mutex::new(Buckets::new(BUDGET, MEMBERS))),
            own: Arc::new(Semaphore::new(1)),
        }
    }

    /// Answers the questions of members.
    pub(crate) fn method(&self) -> Method<Handler> {
        let meter = self.clone();
        let handler: Handler = Box::new(move |call| answer(meter.clone(), call).boxed());
        Method {
            name: "measure",
            cost: 1,
            most: QUESTION,
            handler,
        }
    }

    /// Megabits of packets a second that reach the peer over what carries them now.
    ///
    /// # Errors
    /// [`NotMeasured`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, the round under way ends within a second.
    pub(crate) async fn rate(&self, service: &Service, key: Key) -> Result<f64, NotMeasured> {
        let _alone = self.own.try_acquire().map_err(|_| NotMeasured::Busy)?;
        let ask = async |question: Measure| {
            let body = question.encode();
            let once = || {
                service.ask(
                    key.peer,
                    kind::MEASURE,
                    Some(key.subnet),
                    body.clone(),
                    PATIENCE,
                )
            };
            match once().await {
                // Its connection gave way to another one: that says nothing of the peer, and both questions may be repeated.
                Err(Unanswered::Ask(AskError::Closed | AskError::Failed(_))) => once().await,
                answer => answer,
            }
        };
        let (start, mut next, mut best) = (Instant::now(), (FIRST, None), None);
        // What is left of a former measurement has another number.
        let mut round = getrandom::u32().unwrap_or_default();
        let mut left = MOST;
        while next.0 <= left && start.elapsed() < TIME {
            let (bytes, pace) = next;
            round = round.wrapping_add(1);
            left = left.saturating_sub(bytes);
            match ask(Measure::Begin { round, bytes }).await {
                Ok(_) => {}
                // It agrees to no more: what was measured counts.
                Err(Unanswered::Refused(refusal))
                    if refusal.code == ServiceCode::SlowDown && best.is_some() =>
                {
                    break;
                }
                Err(error) => return Err(error.into()),
            }
            let load = Load {
                round,
                bytes,
                pace,
                limit: ROUND_TIME,
            };
            let sent = self.links.fill(key, load).await;
            let frames = sent.ok_or(NotMeasured::Nothing)?.frames;
            let said = ask(Measure::Read { round, frames }).await?;
            let measured = Measured::parse(&said).ok_or(Unanswered::Malformed)?;
            let Some(rate) = rate(&measured) else { break };
            best = Some(rate);
            let whole = measured.frames as f64 >= frames as f64 * (1.0 - LOSSY);
            let timed = Duration::from_micros(measured.span_us) >= ENOUGH;
            if timed || (whole && bytes >= LARGEST) {
                break;
            }
            next = following(rate, whole);
        }
        best.map(|bytes| bytes * 8.0 / 1e6)
            .ok_or(NotMeasured::Nothing)
    }
}

/// Bytes and pace of the round behind one of which `rate` bytes a second arrived, `whole` or not.
fn following(rate: f64, whole: bool) -> (u64, Option<u64>) {
    let pace = rate * if whole { 4.0 } else { 1.25 };
    // Saturates; neither is negative.
    let bytes = ((pace * AIM) as u64).clamp(FIRST, LARGEST);
    (bytes, Some((pace as u64).max(1)))
}

/// Bytes a second; none of what came all at once.
fn rate(measured: &Measured) -> Option<f64> {
    let seconds = Duration::from_micros(measured.span_us).as_secs_f64();
    // At most 32 MiB: exact in a double.
    (measured.frames > 1 && seconds > 0.0).then(|| measured.bytes as f64 / seconds)
}

async fn answer(meter: Meter, call: Call) -> Result<Vec<u8>, Refusal> {
    let question = Measure::parse(&call.body).ok_or(ServiceCode::Invalid)?;
    let subnet = call.subnet.ok_or(ServiceCode::Invalid)?;
    let key = Key {
        subnet,
        peer: call.peer,
    };
    match question {
        Measure::Begin { round, bytes } => {
            let taken = meter
                .budgets
                .lock()
                .try_take(key.peer, bytes, Instant::now());
            taken.map_err(|wait| Refusal {
                code: ServiceCode::SlowDown,
                retry_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            })?;
            meter.links.expect_filler(key, round, bytes);
            Ok(Vec::new())
        }
        Measure::Read { round, frames } => {
            let filled = settled(&meter.links, key, frames).await;
            if filled.round != round {
                return Err(ServiceCode::NotFound.into());
            }
            let span_us = u64::try_from(filled.span.as_micros()).unwrap_or(u64::MAX);
            Ok(Measured {
                frames: filled.frames,
                bytes: filled.bytes,
                span_us,
            }
            .encode())
        }
    }
}

/// What arrived once all did, or nothing more comes.
async fn settled(links: &Links, key: Key, frames: u64) -> Filled {
    let start = Instant::now();
    let (mut before, mut changed) = (links.filled(key), start);
    loop {
        if before.frames >= frames || changed.elapsed() >= SILENCE || start.elapsed() >= WAIT {
            return before;
        }
        tokio::time::sleep(LOOK).await;
        let now = links.filled(key);
        if now != before {
            (before, changed) = (now, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::SubnetId;

    const PEER: PeerId = PeerId([2; 32]);
    const LAB: SubnetId = SubnetId([7; 16]);

    async fn ask(meter: &Meter, question: Measure) -> Result<Vec<u8>, ServiceCode> {
        let call = Call {
            peer: PEER,
            subnet: Some(LAB),
            body: question.encode(),
        };
        answer(meter.clone(), call).await.map_err(|r| r.code)
    }

    #[tokio::test]
    async fn a_member_has_so_many_bytes_counted_and_is_told_to_slow_down_then() {
        let (links, _wants) = Links::new(tokio::runtime::Handle::current(), None);
        let meter = Meter::new(links);
        for round in 0..2 {
            let bytes = BUDGET.burst / 2;
            assert_eq!(
                ask(&meter, Measure::Begin { round, bytes }).await,
                Ok(vec![])
            );
        }
        let more = Measure::Begin {
            round: 2,
            bytes: BUDGET.burst / 2,
        };
        assert_eq!(ask(&meter, more).await, Err(ServiceCode::SlowDown));
        let other = Measure::Read {
            round: 2,
            frames: 0,
        };
        assert_eq!(
            ask(&meter, other).await,
            Err(ServiceCode::NotFound),
            "a round that was not agreed to"
        );
        let agreed = Measure::Read {
            round: 1,
            frames: 0,
        };
        assert!(ask(&meter, agreed).await.is_ok());
        let nowhere = Call {
            peer: PEER,
            subnet: None,
            body: more.encode(),
        };
        let refused = answer(meter.clone(), nowhere).await.map_err(|r| r.code);
        assert_eq!(refused, Err(ServiceCode::Invalid), "in no subnet");
    }

    #[test]
    fn a_path_that_loses_is_filled_hardly_faster_than_it_carries() {
        let megabyte = 1_000_000.0;
        assert_eq!(following(megabyte, false), (375_000, Some(1_250_000)));
        assert_eq!(following(megabyte, true), (1_200_000, Some(4_000_000)));
        assert_eq!(following(1000.0 * megabyte, true).0, LARGEST);
        assert_eq!(following(0.0, false), (FIRST, Some(1)));
    }

    #[test]
    fn a_rate_is_bytes_over_the_time_they_took() {
        let measured = |frames, bytes, span_us| Measured {
            frames,
            bytes,
            span_us,
        };
        assert_eq!(rate(&measured(100, 1_000_000, 80_000)), Some(12_500_000.0));
        assert_eq!(rate(&measured(100, 1_000_000, 0)), None);
        assert_eq!(rate(&measured(1, 1000, 10)), None);
    }
}
