//! `probe`: round trip, jitter, loss, bandwidth and path MTU of what carries packets to a peer now, and apart from these the
//! round trip of the control connection.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;

use super::Commands;
use super::peers::{away, data_rtt, resolve};
use super::wake::wake;
use crate::api::types::{Error, ErrorKind, ProbeInfo, Response};
use crate::link::Key;
use crate::model::error::Code;
use crate::model::members::printable;
use crate::report::peers::peer_show;
use crate::service::ping;

/// Probes of the round trip.
const PINGS: u32 = 20;
/// Questions over the control connection: enough for a median, and few of what one peer may ask in a second.
const QUESTIONS: u32 = 5;
/// The time from one probe to the next.
const APART: Duration = Duration::from_millis(50);
/// The time from one question to the next.
const QUESTIONS_APART: Duration = Duration::from_millis(200);
/// How long each of them is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn probe(ctx: &Commands, target: &str) -> Result<Response, Error> {
    let (peer, subnet, _) = resolve(ctx, target).await?;
    let subnet = away(ctx, target, peer, subnet).await?;
    let key = Key { subnet, peer };
    wake(ctx, key, PATIENCE).await;
    // Both at once, and before the bandwidth: what fills the path makes every answer late.
    let (times, control) = tokio::join!(round_trips(ctx, key), control_trips(ctx, key));
    let info = peer_show(&ctx.report, &peer.to_string()).await?;
    if times.iter().flatten().next().is_none() {
        let message = format!(
            "no answer from {}: none of {PINGS} probes came back",
            printable(target)
        );
        return Err(Error::new(ErrorKind::Timeout, Code::Timeout, message)
            .hint(format!("byway peer show {peer}")));
    }
    let (mbit, note) = match ctx.mesh.meter.rate(&ctx.mesh.service, key).await {
        Ok(mbit) => (Some((mbit * 10.0).round() / 10.0), None),
        Err(why) => (None, Some(format!("the bandwidth was not measured: {why}"))),
    };
    let (rtt_ms, jitter_ms, loss) = summary(&times);
    Ok(Response::Probe(ProbeInfo {
        target: target.to_owned(),
        peer_id: peer,
        rtt_ms,
        control_rtt_ms: median(&control),
        jitter_ms,
        loss,
        mbit,
        mtu: info.path.mtu,
        path: info.path,
        note,
    }))
}

/// The round trips of probes along the path of packets.
async fn round_trips(ctx: &Commands, key: Key) -> Vec<Option<Duration>> {
    each(PINGS, APART, || data_rtt(ctx, key)).await
}

/// The round trips of questions over the control connection.
async fn control_trips(ctx: &Commands, key: Key) -> Vec<Option<Duration>> {
    let ask = || async {
        let begun = Instant::now();
        let answer = ping::ping(&ctx.mesh.service, key.peer, PATIENCE).await;
        answer.ok().map(|_| begun.elapsed())
    };
    each(QUESTIONS, QUESTIONS_APART, ask).await
}

/// So many measurements, each begun so long after the one before, in the order they were begun; none of those that did not
/// end in [`PATIENCE`].
async fn each<F>(count: u32, apart: Duration, measure: impl Fn() -> F) -> Vec<Option<Duration>>
where
    F: Future<Output = Option<Duration>>,
{
    let measure = &measure;
    let mut all = FuturesOrdered::new();
    for number in 0..count {
        all.push_back(async move {
            tokio::time::sleep(apart * number).await;
            let one = tokio::time::timeout(PATIENCE, measure()).await;
            one.ok().flatten()
        });
    }
    all.collect().await
}

/// Median round trip and mean difference of one to the next, in milliseconds, and the share that was not answered.
fn summary(times: &[Option<Duration>]) -> (f64, f64, f64) {
    let answered: Vec<f64> = times
        .iter()
        .flatten()
        .map(|time| time.as_secs_f64() * 1e3)
        .collect();
    let middle = median(times).unwrap_or_default();
    let steps = answered.windows(2).map(|pair| match pair {
        [one, next] => (next - one).abs(),
        _ => 0.0,
    });
    // Probes are few: exact in a double.
    let count = answered.len().saturating_sub(1).max(1) as f64;
    let jitter = steps.sum::<f64>() / count;
    let lost = times.len().saturating_sub(answered.len()) as f64;
    (middle, micros(jitter), lost / times.len().max(1) as f64)
}

/// The median of the round trips that were answered, in milliseconds; none where none was.
fn median(times: &[Option<Duration>]) -> Option<f64> {
    let mut answered: Vec<Duration> = times.iter().flatten().copied().collect();
    answered.sort_unstable();
    let middle = answered.get(answered.len() / 2)?;
    Some(micros(middle.as_secs_f64() * 1e3))
}

/// Milliseconds, to the microsecond.
fn micros(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_the_round_trips_their_differences_and_what_is_missing() {
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(
            summary(&[ms(10), None, ms(14), ms(11), ms(90)]),
            (14.0, 28.667, 0.2)
        );
        assert_eq!(summary(&[ms(7)]), (7.0, 0.0, 0.0));
        assert_eq!(summary(&[None, None]), (0.0, 0.0, 1.0));
        assert_eq!(median(&[ms(9), None, ms(3), ms(4)]), Some(4.0));
        assert_eq!(median(&[None]), None, "silence is no round trip of nothing");
    }
}
