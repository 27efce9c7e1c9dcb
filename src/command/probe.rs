//! `probe`: round trip, jitter, loss, bandwidth and path MTU of what carries packets to a peer now.

use std::time::Duration;

use super::Commands;
use super::peers::{away, data_rtt, resolve};
use crate::api::types::{Error, ErrorKind, ProbeInfo, Response};
use crate::link::Key;
use crate::model::error::Code;
use crate::model::members::printable;
use crate::report::peers::peer_show;

/// Probes of the round trip.
const PINGS: u32 = 20;
/// The time from one to the next.
const APART: Duration = Duration::from_millis(50);
/// How long each is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn probe(ctx: &Commands, target: &str) -> Result<Response, Error> {
    let (peer, subnet, _) = resolve(ctx, target).await?;
    let subnet = away(ctx, target, peer, subnet).await?;
    let key = Key { subnet, peer };
    let times = round_trips(ctx, key).await;
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
        jitter_ms,
        loss,
        mbit,
        mtu: info.path.mtu,
        path: info.path,
        note,
    }))
}

/// The round trips of all probes, in the order they were sent; none of those that were not answered.
async fn round_trips(ctx: &Commands, key: Key) -> Vec<Option<Duration>> {
    let mut probes = futures::stream::FuturesOrdered::new();
    for number in 0..PINGS {
        probes.push_back(async move {
            tokio::time::sleep(APART * number).await;
            let probe = data_rtt(ctx, key, None);
            tokio::time::timeout(PATIENCE, probe).await.ok().flatten()
        });
    }
    futures::StreamExt::collect(probes).await
}

/// Median round trip and mean difference of one to the next, in milliseconds, and the share that was not answered.
fn summary(times: &[Option<Duration>]) -> (f64, f64, f64) {
    let answered: Vec<f64> = times
        .iter()
        .flatten()
        .map(|time| time.as_secs_f64() * 1e3)
        .collect();
    let mut sorted = answered.clone();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let steps = answered.windows(2).map(|pair| match pair {
        [one, next] => (next - one).abs(),
        _ => 0.0,
    });
    // Probes are few: exact in a double.
    let count = answered.len().saturating_sub(1).max(1) as f64;
    let jitter = steps.sum::<f64>() / count;
    let lost = times.len().saturating_sub(answered.len()) as f64;
    let micros = |ms: f64| (ms * 1e3).round() / 1e3;
    (
        micros(middle),
        micros(jitter),
        lost / times.len().max(1) as f64,
    )
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
    }
}
