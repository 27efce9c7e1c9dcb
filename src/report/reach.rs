//! Why a peer is not reached directly, and what was tried: what the datagram sessions know, as the API shows it.

use std::net::SocketAddr;

use super::Report;
use super::paths::seconds;
use super::reason::{self, End, Facts, Reason, Udp};
use crate::api::types::{self, Path};
use crate::link::direct::{DirectStatus, PathChange, PathEnd, Unsure};
use crate::model::id::PeerId;
use crate::node::unix_now;
use crate::p2p::named;
use crate::peer::path::Cause;
use crate::wire::paths::{self, Kind, NatFacts};

/// For so many seconds after the path began, a relayed one is explained by `probing`.
const SEARCH_TIME: u64 = 15;
/// A direct path that lost packets is a reason for so long, in seconds.
const HOLE_TIME: u64 = 600;

/// Finds the name of a peer.
pub(super) type Namer<'a> = &'a dyn Fn(PeerId) -> Option<String>;

impl From<&NatFacts> for End {
    fn from(told: &NatFacts) -> End {
        let NatFacts {
            mapping,
            filtering,
            udp,
            ip4,
            ip6,
        } = *told;
        // Of an end that knows of no address nothing is known.
        let unknown = !ip4 && !ip6;
        End {
            udp: match udp {
                paths::Udp::Blocked => Udp::Blocked,
                paths::Udp::Off => Udp::Off,
                paths::Udp::Works | paths::Udp::Unknown => Udp::Open,
            },
            v4: ip4 || unknown,
            v6: ip6 || unknown,
            mapping,
            filtering,
            is_open: false,
        }
    }
}

/// What the reason of a path that is no direct one is computed from.
pub(super) fn facts(ctx: &Report, session: Option<&DirectStatus>, since: u64) -> Facts {
    let denies = !ctx.settings.borrow().deny_cidrs.is_empty();
    let facts = of_session(session, denies, since, unix_now());
    match ctx.mesh.direct {
        Some(_) => facts,
        None => Facts {
            here: End {
                udp: Udp::Off,
                ..facts.here
            },
            ..facts
        },
    }
}

fn of_session(session: Option<&DirectStatus>, denies: bool, since: u64, now: u64) -> Facts {
    let known = session.map(|session| End {
        is_open: session.open.is_some(),
        ..End::from(&session.here)
    });
    let there = session.and_then(|session| {
        Some(End {
            is_open: open_there(session).is_some(),
            ..End::from(session.there.as_ref()?)
        })
    });
    let tried = session.map(|s| &s.tried[..]).unwrap_or_default();
    let changes = session.map(|s| &s.changes[..]).unwrap_or_default();
    let direct = |end: &Option<PathEnd>| end.is_some_and(|end| end.relay.is_none());
    let left = changes.iter().rev().find(|change| direct(&change.from));
    let hole = |change: &PathChange| {
        let age = now.saturating_sub(seconds(change.at).unwrap_or(0));
        change.cause == Cause::DataLost && age < HOLE_TIME
    };
    Facts {
        here: known.unwrap_or(End::UNKNOWN),
        there,
        denied: denies && session.is_some() && tried.iter().all(|at| at.kind == Kind::Relay),
        black_hole: left.is_some_and(hole),
        searching: now.saturating_sub(since) < SEARCH_TIME || session.is_some_and(|s| s.spraying),
    }
}

/// Adds to a relayed path what the relay is called and why the path to `peer` is not direct; the reason and its cause in
/// words. None for any other path.
pub(super) fn explain(
    ctx: &Report,
    path: &mut Path,
    peer: &str,
    session: Option<&DirectStatus>,
    name: Namer<'_>,
) -> Option<(Reason, String)> {
    if path.kind != "relay" {
        return None;
    }
    let relay = path.via.as_deref().and_then(|via| via.parse().ok());
    path.via_name = relay.and_then(name);
    let facts = facts(ctx, session, path.since);
    let why = reason::reason(&facts);
    path.reason = Some(why.word().to_owned());
    path.remedy = why.remedy(peer);
    Some((why, why.cause(peer, &facts)))
}

/// Where datagrams were tried.
pub(super) fn tried(session: &DirectStatus) -> Vec<types::Tried> {
    let tried = |at: &crate::link::direct::Tried| types::Tried {
        address: match at.relay {
            Some(relay) => relay.to_string(),
            None => named(at.address),
        },
        kind: kind(at.kind).to_owned(),
        answered: at.answered,
        tries: at.tries,
        last: at.last.and_then(seconds),
    };
    session.tried.iter().map(tried).collect()
}

pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Host => "host",
        Kind::Advertised => "advertised",
        Kind::Mapped => "mapped",
        Kind::Observed => "observed",
        Kind::Predicted => "predicted",
        Kind::Relay => "relay",
    }
}

/// What stands before this node, and before the peer, as far as the two know.
pub(super) fn ends(session: &DirectStatus) -> (types::NatInfo, Option<types::NatInfo>) {
    let with = |facts: &NatFacts, open: Option<SocketAddr>| types::NatInfo {
        open: open.map(named),
        ..nat(Some(facts))
    };
    let there = session.there.as_ref();
    let there = there.map(|facts| with(facts, open_there(session)));
    (with(&session.here, session.open), there)
}

/// Where the peer says that everybody is let in: a port that its router opened, or that its owner forwards.
fn open_there(session: &DirectStatus) -> Option<SocketAddr> {
    let mut all = session.tried.iter();
    let is_open = |kind| matches!(kind, Kind::Mapped | Kind::Advertised);
    all.find(|at| is_open(at.kind)).map(|at| at.address)
}

/// What stands before one end, in the words of the API; none where no port for datagrams is opened.
pub(super) fn nat(told: Option<&NatFacts>) -> types::NatInfo {
    use crate::wire::paths::{Filtering, Mapping, Udp};
    let facts = told.copied().unwrap_or_default();
    let udp = match facts.udp {
        _ if told.is_none() => "off",
        Udp::Works => "works",
        Udp::Blocked => "blocked",
        Udp::Unknown => "unknown",
        Udp::Off => "off",
    };
    let (mapping, step) = match facts.mapping {
        Mapping::Unknown => ("unknown", None),
        Mapping::Open => ("none", None),
        Mapping::Independent => ("independent", None),
        Mapping::Dependent { step } => ("dependent", step),
    };
    let filtering = match facts.filtering {
        Filtering::Unknown => "unknown",
        Filtering::Independent => "endpoint-independent",
        Filtering::AddressDependent => "address-dependent",
        Filtering::AddressAndPortDependent => "address-and-port-dependent",
    };
    types::NatInfo {
        ipv4: facts.ip4,
        ipv6: facts.ip6,
        udp: udp.to_owned(),
        mapping: mapping.to_owned(),
        step,
        filtering: filtering.to_owned(),
        filtering_unknown: None,
        open: None,
    }
}

/// Why it is not known what the NAT before this machine lets in, in words.
pub(super) fn unsure(why: Unsure) -> &'static str {
    match why {
        Unsure::NotTested => "it was not tested yet",
        Unsure::NoWitness => "no member is reached directly over IPv4, to test it with",
        Unsure::NoAnswer => "no member that was asked hears a new socket of this machine",
        Unsure::NoKnock => "no member that was asked sends to a new socket of this machine",
        Unsure::NoStranger => {
            "more than the answers of whom this machine sends to, but how much more takes a second member at another address to tell"
        }
    }
}

/// The last changes of the datagram path.
pub(super) fn changes(session: &DirectStatus, name: Namer<'_>) -> Vec<types::PathChange> {
    let end = |end: PathEnd| match end.relay {
        Some(relay) => format!("relay {}", name(relay).unwrap_or_else(|| relay.short())),
        None => match end.from {
            Some(from) => format!("direct udp {} from {from}", named(end.to)),
            None => format!("direct udp {}", named(end.to)),
        },
    };
    let change = |change: &PathChange| types::PathChange {
        at: seconds(change.at).unwrap_or(0),
        from: change.from.map(end),
        to: change.to.map(end),
        cause: cause(change.cause).to_owned(),
    };
    session.changes.iter().map(change).collect()
}

fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Found => "a probe was answered",
        Cause::Better => "a better kind of path was answered",
        Cause::Faster => "it is faster or loses less",
        Cause::PeerMoved => "the peer's packets come from another address",
        Cause::Silent => "probes were not answered any more",
        Cause::DataLost => "probes were answered and packets did not arrive",
        Cause::Aged => "a NAT was about to end the mapping at its age",
        Cause::Thin => "it carries no datagram of 1280 bytes",
        Cause::LegGone => "the relay gave it up",
        Cause::Forbidden => "nothing may be sent to that address",
        Cause::HelperGone => "the socket that it left by was closed",
        Cause::NoKey => "the session has no key",
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::link::direct::Tried;
    use crate::wire::paths::{Filtering, Mapping};

    const NOW: u64 = 1_700_000_000;

    fn session() -> DirectStatus {
        let here = NatFacts {
            mapping: Mapping::Dependent { step: None },
            filtering: Filtering::AddressAndPortDependent,
            udp: crate::wire::paths::Udp::Works,
            ip4: true,
            ip6: false,
        };
        DirectStatus {
            path: None,
            cipher: None,
            hybrid: None,
            unmet: false,
            keys: 1,
            path_changes: 2,
            here,
            open: None,
            there: None,
            spraying: false,
            tried: [].into(),
            changes: [].into(),
        }
    }

    fn tried_at(kind: Kind) -> Tried {
        Tried {
            address: "192.0.2.7:4100".parse().unwrap(),
            kind,
            relay: (kind == Kind::Relay).then_some(PeerId([2; 32])),
            answered: false,
            tries: 3,
            last: Some(UNIX_EPOCH + Duration::from_secs(NOW)),
        }
    }

    fn moved(cause: Cause, ago: u64) -> PathChange {
        let end = |relay| PathEnd {
            to: "[::ffff:192.0.2.7]:4100".parse().unwrap(),
            relay,
            from: None,
        };
        PathChange {
            at: UNIX_EPOCH + Duration::from_secs(NOW - ago),
            from: Some(end(None)),
            to: Some(end(Some(PeerId([2; 32])))),
            cause,
        }
    }

    #[test]
    fn the_reason_follows_what_both_ends_told() {
        let word = |session: &DirectStatus, denies, age| {
            reason::reason(&of_session(Some(session), denies, NOW - age, NOW)).word()
        };
        let mut s = session();
        assert_eq!(word(&s, false, 3), "probing");
        assert_eq!(word(&s, false, 60), "symmetric-nat-here");
        s.spraying = true;
        assert_eq!(word(&s, false, 60), "probing", "it waits for its turn");
        s.spraying = false;
        let there = |mapping, udp| {
            Some(NatFacts {
                mapping,
                udp,
                ..session().here
            })
        };
        let (works, blocked) = (
            crate::wire::paths::Udp::Works,
            crate::wire::paths::Udp::Blocked,
        );
        s.there = there(Mapping::Dependent { step: Some(1) }, works);
        assert_eq!(word(&s, false, 3), "symmetric-nat-both");
        s.there = there(Mapping::Independent, blocked);
        assert_eq!(word(&s, false, 3), "udp-blocked");
        s.there = Some(NatFacts {
            ip4: false,
            ip6: true,
            ..session().here
        });
        assert_eq!(word(&s, false, 60), "no-common-family");
        s.there = Some(NatFacts::default());
        assert_eq!(
            word(&s, false, 60),
            "symmetric-nat-here",
            "it knows nothing of itself yet"
        );
    }

    #[test]
    fn a_port_that_is_open_at_one_end_makes_its_nat_no_reason() {
        let told = |session: &DirectStatus| {
            let why = reason::reason(&of_session(Some(session), false, NOW - 60, NOW)).word();
            let (here, there) = ends(session);
            (why, here.open, there.unwrap().open)
        };
        let mut s = session();
        s.there = Some(session().here);
        assert_eq!(told(&s), ("symmetric-nat-both", None, None));
        s.open = Some("[::ffff:203.0.113.9]:4100".parse().unwrap());
        let here = Some("203.0.113.9:4100".to_owned());
        assert_eq!(told(&s), ("peer-silent", here, None));
        s.open = None;
        for kind in [Kind::Mapped, Kind::Advertised] {
            s.tried = [tried_at(Kind::Host), tried_at(kind)].into();
            let there = Some("192.0.2.7:4100".to_owned());
            assert_eq!(told(&s), ("peer-silent", None, there));
        }
    }

    #[test]
    fn addresses_that_are_denied_and_packets_that_are_lost_are_reasons() {
        let facts = |session: &DirectStatus, denies| of_session(Some(session), denies, NOW, NOW);
        let mut s = session();
        s.tried = [tried_at(Kind::Relay)].into();
        assert!(facts(&s, true).denied && !facts(&s, false).denied);
        s.tried = [tried_at(Kind::Relay), tried_at(Kind::Host)].into();
        assert!(!facts(&s, true).denied);
        assert!(!of_session(None, true, NOW, NOW).denied, "nothing is known");

        s.changes = [moved(Cause::DataLost, 60)].into();
        assert!(facts(&s, false).black_hole);
        s.changes = [moved(Cause::DataLost, 60), moved(Cause::Silent, 5)].into();
        assert!(!facts(&s, false).black_hole, "it was direct again since");
        s.changes = [moved(Cause::DataLost, 3600)].into();
        assert!(!facts(&s, false).black_hole, "long ago");
    }

    #[test]
    fn what_was_tried_and_what_changed_is_told_in_words() {
        let mut s = session();
        s.tried = [tried_at(Kind::Observed), tried_at(Kind::Relay)].into();
        s.changes = [moved(Cause::Silent, 5)].into();
        let shown = tried(&s);
        assert_eq!(
            (
                shown[0].address.as_str(),
                shown[0].kind.as_str(),
                shown[0].last
            ),
            ("192.0.2.7:4100", "observed", Some(NOW))
        );
        assert_eq!(shown[1].address, PeerId([2; 32]).to_string());
        let told = changes(&s, &|_| Some("r".to_owned()));
        assert_eq!(told[0].from.as_deref(), Some("direct udp 192.0.2.7:4100"));
        assert_eq!(told[0].to.as_deref(), Some("relay r"));
        assert_eq!(told[0].cause, "probes were not answered any more");
    }
}
