//! `doctor --fix`: does at once what the daemon would do in its own time, and takes nothing away.
//!
//! Peers that are not reached are dialled at each address that is known of them, also where that has failed so often that it is
//! tried seldom by now. Peers that are reached through a relay are probed at all their addresses, which else happens once a
//! minute. Relays that keep no place for this node, and routers that opened no port, are asked again. Nothing of the configuration, of the machine
//! or of others is changed: what these need is left to the remedies.

use std::time::{Duration, Instant};

use futures::future::join_all;

use super::Commands;
use crate::api::types::{Diagnosis, DoctorInfo, Error, ErrorKind, Response};
use crate::model::error::Code;
use crate::p2p::{Command, ConnectError};
use crate::portmap::{Status, Trouble, Why};
use crate::report::doctor::doctor;
use crate::report::router::told;
use crate::service::settings;

/// The most peers that are dialled for one question.
const MOST: usize = 64;
/// How long a dial is waited for.
const DIAL: Duration = Duration::from_secs(10);
/// How long the answers of relays are waited for.
const PLACES: Duration = Duration::from_secs(4);
/// How long the answers of routers are waited for.
const PORTS: Duration = Duration::from_secs(4);
/// How long a straight way is waited for: the first burst of probes, and what answers it.
const STRAIGHT: Duration = Duration::from_secs(4);
/// The time between two looks at these.
const LOOK: Duration = Duration::from_millis(200);

/// Mends what it can, and looks then.
///
/// # Errors
/// As `doctor`.
pub(super) async fn mend(ctx: &Commands, peer: Option<String>) -> Result<Response, Error> {
    let before = doctor(&ctx.report, peer.clone()).await?;
    let mut done = Vec::from_iter(asked_again(ctx).await?);
    done.extend(ports(ctx).await);
    let away = before
        .peers
        .iter()
        .filter(|peer| peer.path.kind == "offline");
    done.extend(join_all(away.take(MOST).map(|peer| dial(ctx, peer))).await);
    let relayed = before.peers.iter().filter(|peer| peer.path.kind == "relay");
    done.extend(join_all(relayed.take(MOST).map(|peer| look(ctx, peer))).await);
    let mut info = doctor(&ctx.report, peer).await?;
    if done.is_empty() {
        done.push("nothing: there is nobody to dial or to probe, and no relay to ask".to_owned());
    }
    info.done = done;
    Ok(Response::Doctor(info))
}

/// Asks routers again for ports; what came of it at each that had refused.
async fn ports(ctx: &Commands) -> Vec<String> {
    let portmap = &ctx.mesh.portmap;
    let of = |status: &Status| status.gateway.map(|gateway| gateway.address);
    let before: Vec<_> = portmap
        .status()
        .iter()
        .filter(|s| refuses(s))
        .map(of)
        .collect();
    portmap.ask_again();
    let begun = Instant::now();
    let now = || {
        let mut all = portmap.status();
        all.retain(|status| before.contains(&of(status)));
        all
    };
    while now().iter().any(refuses) && begun.elapsed() < PORTS {
        tokio::time::sleep(LOOK).await;
    }
    let line = |status: &Status| format!("asked the router again for ports: {}", told(status));
    now().iter().map(line).collect()
}

/// Whether that router says no, which its settings may change.
fn refuses(status: &Status) -> bool {
    match status.trouble {
        Some(Trouble::Refused(_, why)) => status.is_enabled && why != Why::FirewallOff,
        Some(Trouble::DoubleNat(_)) => status.is_enabled,
        _ => false,
    }
}

/// Looks for a straight way to a peer that is reached through a relay; what came of it.
async fn look(ctx: &Commands, peer: &Diagnosis) -> String {
    let name = &peer.name;
    let Some(direct) = &ctx.mesh.direct else {
        return format!("{name} was not probed: this machine has no UDP port");
    };
    direct.look(peer.peer_id).await;
    let begun = Instant::now();
    while begun.elapsed() < STRAIGHT {
        tokio::time::sleep(LOOK).await;
        let now = doctor(&ctx.report, Some(peer.peer_id.to_string())).await;
        let is_straight = |info: &DoctorInfo| info.peers.iter().all(|d| d.path.kind == "direct");
        if now.as_ref().is_ok_and(is_straight) {
            return format!("probed {name} at all its addresses: there is a direct path");
        }
    }
    format!("probed {name} at all its addresses: there is no direct path")
}

/// Dials a peer wherever it may be; what came of it.
async fn dial(ctx: &Commands, peer: &Diagnosis) -> String {
    let dial = ctx.peers.connect(Vec::new(), Some(peer.peer_id));
    let name = &peer.name;
    match tokio::time::timeout(DIAL, dial).await {
        Ok(Ok(_)) => format!("dialled {name} again: it is connected"),
        Ok(Err(ConnectError::NoAddress)) => {
            format!("{name} was not dialled: no address of it is known")
        }
        Ok(Err(error)) => format!("dialled {name} again, in vain: {error}"),
        Err(_) => format!("dialled {name} again: no answer in {} s", DIAL.as_secs()),
    }
}

/// Asks the configured relays that keep no place for this node; what came of it, where there are any.
async fn asked_again(ctx: &Commands) -> Result<Option<String>, Error> {
    let relays = settings::meeting(&ctx.settings.now());
    let kept = async || {
        let places = ctx.peers.places().await.unwrap_or_default();
        let ours = places.into_iter().filter(|place| place.is_configured);
        ours.map(|place| usize::from(place.kept.is_some()))
            .fold((0, 0), |(kept, all), one| (kept + one, all + 1))
    };
    let (before, all) = kept().await;
    // Two are enough, however many there are.
    if before >= all.min(2) {
        return Ok(None);
    }
    let stopping = |_| Error::new(ErrorKind::Failed, Code::Stopping, "the daemon is stopping");
    ctx.peers
        .send(Command::Meeting(relays))
        .await
        .map_err(stopping)?;
    let begun = Instant::now();
    let mut now = before;
    while now < all.min(2) && begun.elapsed() < PLACES {
        tokio::time::sleep(LOOK).await;
        (now, _) = kept().await;
    }
    Ok(Some(format!(
        "asked the relays of transport.bootstrap again: {now} of {all} keep a place"
    )))
}
