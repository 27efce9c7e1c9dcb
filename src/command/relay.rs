//! `relay`: what this node forwards for others, and whether it offers to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reload::Relaying;
use super::{Commands, done};
use crate::api::types::{Error, ErrorKind, KnownRelay, RelayInfo, RelaySession, Response};
use crate::config::word::RelayWord;
use crate::config::{Config, RelayFor, RelayOffer};
use crate::model::error::Code;
use crate::p2p;
use crate::relay::SessionStats;
use crate::report::netcheck::relays;
use crate::service::relay::Relays;
use crate::service::{Known, OfRecords};
use crate::store::{self, StoreError};

/// File of the state directory that keeps the override of the last `relay offer`, `relay off` or `relay auto`.
const WORD_FILE: &str = "relay.json";

/// Reads the override that `relay offer`, `relay off` or `relay auto` left in the state directory.
///
/// # Errors
/// `E-STATE-DAMAGED` where the file says nothing that can be read: a node that was told to relay no more must not begin
/// again in silence. `E-STATE-IO`.
pub(crate) fn kept_word(dir: &Path) -> Result<Option<RelayWord>, Error> {
    let Some(bytes) = store::kept(dir, WORD_FILE).map_err(|e| unkept(&e))? else {
        return Ok(None);
    };
    let word = RelayWord::parse(&bytes).ok_or_else(|| {
        let path = dir.join(WORD_FILE);
        let message = format!("{} says nothing that can be read", path.display());
        let hint = format!(
            "rm {}      (then it relays as the configuration says)",
            store::quoted(&path)
        );
        Error::new(ErrorKind::Failed, Code::StateDamaged, message).hint(hint)
    })?;
    Ok(Some(word))
}

/// Writes the override, or removes its file where it counts no more.
///
/// # Errors
/// `E-DISK-FULL`, `E-STATE-IO`; then the former one is kept.
pub(super) async fn keep_word(ctx: &Commands, word: Option<RelayWord>) -> Result<(), Error> {
    let dir = ctx.config.state_dir.clone();
    let write = move || {
        let bytes = word.map(|word| word.to_bytes());
        store::keep(&dir, WORD_FILE, bytes.as_deref())
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(written) => written.map_err(|e| unkept(&e)),
        Err(e) => Err(Error::new(ErrorKind::Failed, Code::Failed, e.to_string())),
    }
}

fn unkept(error: &StoreError) -> Error {
    Error::new(ErrorKind::Failed, error.code(), error.to_string()).hint(error.hint())
}

/// `relay offer`, `relay off` and `relay auto`: saved first, then in force at once.
pub(super) async fn say(
    ctx: &Commands,
    offer: RelayOffer,
    max_mbit: Option<u32>,
) -> Result<Response, Error> {
    let _one = ctx.settings.change().await;
    let before = ctx.settings.now();
    let mut next = Config::clone(&before);
    let relaying = ctx.settings.relaying();
    relaying.undo(&mut next);
    let word = RelayWord::new(offer, max_mbit, &relaying.written);
    keep_word(ctx, Some(word.clone())).await?;
    let relaying = Relaying::over(&mut next, Some(word));
    ctx.settings.relays(relaying);
    let changed = next.relay != before.relay;
    let message = told(&next);
    let next = Arc::new(next);
    ctx.settings.replace(Arc::clone(&next));
    Ok(done(message, changed))
}

/// How long a rate is measured.
const MEASURED: Duration = Duration::from_millis(250);

/// `relay ls`: the sessions, with the rate of each as it is now.
pub(super) async fn ls(ctx: &Commands) -> Result<Response, Error> {
    let relay = ctx.links.relay();
    let (before, began) = (relay.sessions(), Instant::now());
    if !before.is_empty() {
        tokio::time::sleep(MEASURED).await;
    }
    let (now, elapsed, totals) = (relay.sessions(), began.elapsed(), relay.totals());
    let former = |session: &SessionStats| {
        let same = before.iter().find(|was| was.peers == session.peers);
        same.map_or(0, moved)
    };
    let config = ctx.settings.now();
    let origin = config.origins.get("transport.relay.offer");
    let session = |session: &SessionStats| RelaySession {
        peers: session.peers.to_vec(),
        addresses: session
            .addresses
            .iter()
            .map(|at| at.map(p2p::named))
            .collect(),
        mbit: mbit(moved(session).saturating_sub(former(session)), elapsed),
        max_mbit: session.mbit,
        rx_bytes: session.bytes[0],
        tx_bytes: session.bytes[1],
        drops: by_reason(session.drops.named()),
        age_s: session.age.as_secs(),
    };
    let (places, uses) = relays(&ctx.report).await?;
    Ok(Response::Relay(RelayInfo {
        offers: told(&config),
        offer: match config.relay.offer {
            RelayOffer::Auto => "auto".into(),
            RelayOffer::Always => true.into(),
            RelayOffer::Never => false.into(),
        },
        offer_origin: origin.cloned().unwrap_or_else(|| "default".to_owned()),
        max_mbit: config.relay_mbit(),
        sessions: now.iter().map(session).collect(),
        bytes: totals.bytes,
        drops: by_reason(totals.drops.named()),
        refused: by_reason(totals.refused.named()),
        known: all_known(&ctx.mesh.relays),
        places,
        uses,
    }))
}

/// The members that say over their connections that they forward for this node, then the relays that records tell of.
fn all_known(relays: &Relays) -> Vec<KnownRelay> {
    let said = relays.known();
    let noted = relays.of_records();
    said.iter()
        .map(known)
        .chain(noted.into_iter().map(noted_in_records))
        .collect()
}

/// A relay that records tell of.
fn noted_in_records(relay: OfRecords) -> KnownRelay {
    KnownRelay {
        peer_id: relay.relay,
        source: "record".to_owned(),
        max_mbit: relay.mbit,
        // A member whose records name a rate offers it, and so does a relay that takes in members of others.
        offered: true,
        named_by: relay.named_by,
        rtt_ms: None,
    }
}

/// A member that forwards for this node.
fn known(known: &Known) -> KnownRelay {
    KnownRelay {
        peer_id: known.relay,
        source: "connection".to_owned(),
        max_mbit: Some(known.offer.mbit),
        offered: known.offer.is_offered,
        named_by: Vec::new(),
        rtt_ms: known
            .rtt
            .map(|rtt| (rtt.as_secs_f64() * 1e4).round() / 10.0),
    }
}

/// Bytes that a session forwarded, both ways.
fn moved(session: &SessionStats) -> u64 {
    session.bytes.iter().sum()
}

/// So many bytes in that time, in Mbit/s with two digits behind the point.
fn mbit(bytes: u64, elapsed: Duration) -> f64 {
    let bits = u32::try_from(bytes.saturating_mul(8)).map_or(f64::from(u32::MAX), f64::from);
    let rate = bits / elapsed.as_secs_f64().max(f64::MIN_POSITIVE) / 1e6;
    (rate * 100.0).round() / 100.0
}

/// Counts by the names of their reasons, without those that there are none of.
fn by_reason<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    let all = counts.into_iter().filter(|(_, count)| *count > 0);
    all.map(|(why, count)| (why.to_owned(), count)).collect()
}

/// What this node does for others by a configuration, in one line.
fn told(config: &Config) -> String {
    let Some(mbit) = config.relay_mbit() else {
        return "relays for nobody".to_owned();
    };
    let whom = match &config.relay.for_whom {
        RelayFor::Auto if config.relay_only => "anyone".to_owned(),
        RelayFor::Anyone => "anyone".to_owned(),
        RelayFor::Auto | RelayFor::Members => "members of its subnets".to_owned(),
        RelayFor::Peers(peers) if peers.len() == 1 => "1 peer".to_owned(),
        RelayFor::Peers(peers) => format!("{} peers", peers.len()),
    };
    let offered = if config.relay.offer == RelayOffer::Always {
        "offers to relay"
    } else {
        "relays"
    };
    format!("{offered} for {whom}, at most {mbit} Mbit/s in all")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::PeerId;

    #[test]
    fn what_is_done_for_others_is_said_in_one_line() {
        let mut config = Config::defaults("a");
        assert_eq!(
            told(&config),
            "relays for members of its subnets, at most 10 Mbit/s in all"
        );
        config.relay_only = true;
        assert_eq!(
            told(&config),
            "relays for anyone, at most 100 Mbit/s in all"
        );
        config.relay.offer = RelayOffer::Always;
        config.relay.for_whom = RelayFor::Peers(vec![]);
        assert_eq!(
            told(&config),
            "offers to relay for 0 peers, at most 100 Mbit/s in all"
        );
        config.relay.for_whom = RelayFor::Peers(vec![PeerId([2; 32])]);
        assert_eq!(
            told(&config),
            "offers to relay for 1 peer, at most 100 Mbit/s in all"
        );
        config.relay.offer = RelayOffer::Never;
        assert_eq!(told(&config), "relays for nobody");
    }

    #[test]
    fn a_damaged_word_is_named_and_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kept_word(dir.path()), Ok(None));
        store::keep(dir.path(), WORD_FILE, Some(b"{")).unwrap();
        let error = kept_word(dir.path()).unwrap_err();
        assert_eq!(error.code, Code::StateDamaged);
        assert!(error.hint.contains("relay.json"), "{error}");
    }
}
