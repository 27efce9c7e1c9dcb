//! Whether whoever joins by an invite of this node can reach it from another network: what is said when an invite is made.

use super::Report;
use super::netcheck::nat_here;
use crate::api::types::NatInfo;
use crate::p2p::Address;

/// What to do about it.
const REMEDY: &str = "name a relay in transport.bootstrap of this machine and make another invite once byway netcheck says that \
                      this relay keeps a place; or forward UDP and TCP port 4100 in the router to this machine, and name its public address in \
                      transport.advertise";

/// What whoever passes on an invite of this node should know, as sentences; nothing where the invite leads here from anywhere,
/// or nothing is known of that because the node is stopping.
pub(crate) async fn notes(ctx: &Report) -> Vec<String> {
    let (is_advertised, listens) = {
        let settings = ctx.settings.borrow();
        (!settings.advertise.is_empty(), !settings.listen.is_empty())
    };
    if is_advertised {
        // Its owner says where it is reached.
        return Vec::new();
    }
    let (Ok(endpoints), Ok(nat)) = (ctx.node.endpoints().await, nat_here(ctx).await) else {
        return Vec::new();
    };
    let places = ctx.peers.places().await.unwrap_or_default();
    let outside = ctx.mesh.outside().into_iter();
    let known = Known {
        endpoints,
        seen: outside.map(|address| address.to_string()).collect(),
        listens,
        nat,
        is_kept_by_member: places.iter().any(|p| p.kept.is_some() && !p.is_configured),
    };
    note(&known).into_iter().collect()
}

/// What the note follows from.
struct Known {
    /// Where this node says that it is reached.
    endpoints: Vec<String>,
    /// Those of them at which others see its datagrams come from: a NAT may let nobody in there.
    seen: Vec<String>,
    listens: bool,
    nat: NatInfo,
    /// Whether a member keeps a place for this node that the configuration does not name as a relay.
    is_kept_by_member: bool,
}

/// Why nobody in another network reaches this node at these addresses, in words; none where somebody may.
fn note(known: &Known) -> Option<String> {
    let Known {
        endpoints,
        nat,
        listens,
        ..
    } = known;
    let lets_in = nat.mapping == "none" || nat.filtering == "endpoint-independent";
    if nat.open.is_some() {
        return None;
    }
    let is_blind = |at: &String| known.seen.contains(at) && !lets_in;
    let is_seen = known.seen.iter().any(is_blind);
    let told = endpoints.iter().filter(|at| !is_blind(at));
    let all: Vec<Address> = told.filter_map(|at| at.parse().ok()).collect();
    let leads_out = |at: &Address| at.relay().is_some() || !at.is_of_site();
    // Before the first of them is known nothing can be said.
    if all.iter().any(leads_out) || (endpoints.is_empty() && *listens) {
        return None;
    }
    let behind = match nat.mapping.as_str() {
        "dependent" => Some("a symmetric NAT"),
        "independent" => Some("a NAT"),
        _ if is_seen => Some("a NAT"),
        _ => None,
    };
    let place = match known.is_kept_by_member {
        true => "no relay keeps a place for it (a member does, which is not in invites)",
        false => "no relay keeps a place for it",
    };
    let why = match behind {
        _ if !listens => "this machine listens on nothing (transport.listen)".to_owned(),
        Some(behind) if is_seen => format!(
            "this machine is behind {behind} that is not known to let anybody in, and {place}"
        ),
        Some(behind) => format!("this machine is behind {behind}, and {place}"),
        None => format!("all addresses of this machine are private, and {place}"),
    };
    Some(format!(
        "{why}: who joins by this invite from another network does not reach it; {REMEDY}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::PeerId;

    fn nat(mapping: &str) -> NatInfo {
        NatInfo {
            ipv4: true,
            ipv6: false,
            udp: "works".into(),
            mapping: mapping.into(),
            step: None,
            filtering: "unknown".into(),
            filtering_unknown: None,
            open: None,
        }
    }

    fn known(endpoints: &[&str], mapping: &str) -> Known {
        Known {
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            seen: Vec::new(),
            listens: true,
            nat: nat(mapping),
            is_kept_by_member: false,
        }
    }

    fn told(endpoints: &[&str], mapping: &str) -> Option<String> {
        note(&known(endpoints, mapping))
    }

    #[test]
    fn an_address_that_is_only_seen_counts_where_the_nat_lets_everybody_in() {
        let (site, seen) = (
            "/ip4/192.168.1.5/udp/4100/quic-v1",
            "/ip4/203.0.113.9/udp/4100/quic-v1",
        );
        let with = |mapping: &str, filtering: &str| {
            let mut known = known(&[seen, site], mapping);
            known.seen = vec![seen.to_owned()];
            known.nat.filtering = filtering.to_owned();
            known
        };
        for mapping in ["unknown", "independent"] {
            for filtering in ["unknown", "address-and-port-dependent", "address-dependent"] {
                let note = note(&with(mapping, filtering)).unwrap();
                let start = "this machine is behind a NAT that is not known to let anybody in, and no relay keeps a place";
                assert!(note.starts_with(start), "{note}");
            }
            assert_eq!(note(&with(mapping, "endpoint-independent")), None);
            let mut opened = with(mapping, "address-and-port-dependent");
            opened.nat.open = Some("203.0.113.9:4100".into());
            assert_eq!(note(&opened), None, "the router leads here");
        }
        assert_eq!(note(&with("none", "unknown")), None);
    }

    #[test]
    fn a_place_at_a_member_is_told_from_one_at_a_relay() {
        let mut known = known(&["/ip4/192.168.1.5/tcp/4100"], "independent");
        known.is_kept_by_member = true;
        let note = note(&known).unwrap();
        assert!(
            note.contains("(a member does, which is not in invites)"),
            "{note}"
        );
        assert!(note.contains("this relay keeps a place"), "{note}");
    }

    #[test]
    fn who_is_reached_only_from_its_own_site_says_so_with_the_remedy() {
        let site = [
            "/ip4/192.168.1.5/udp/4100/quic-v1",
            "/ip6/fd00::5/tcp/4100",
            "/ip4/100.64.1.1/tcp/4100",
        ];
        let unknown = told(&site, "unknown").unwrap();
        assert!(unknown.starts_with("all addresses of this machine are private"));
        let behind = told(&site, "independent").unwrap();
        assert!(
            behind.starts_with("this machine is behind a NAT, "),
            "{behind}"
        );
        let symmetric = told(&site, "dependent").unwrap();
        assert!(symmetric.starts_with("this machine is behind a symmetric NAT"));
        for note in [unknown, behind, symmetric] {
            assert!(note.contains("transport.bootstrap") && note.contains("transport.advertise"));
        }
        let nothing = Known {
            listens: false,
            ..known(&[], "unknown")
        };
        let nothing = note(&nothing).unwrap();
        assert!(nothing.contains("listens on nothing"), "{nothing}");
    }

    #[test]
    fn nothing_is_said_where_somebody_outside_may_come_in() {
        let (relay, me) = (PeerId([2; 32]), PeerId([1; 32]));
        let site = "/ip4/192.168.1.5/udp/4100/quic-v1";
        let circuit = format!("/ip4/10.0.0.1/tcp/4100/p2p/{relay}/p2p-circuit/p2p/{me}");
        assert_eq!(told(&[site, &circuit], "dependent"), None);
        for public in [
            "/ip4/203.0.113.9/tcp/4100",
            "/ip6/2001:db8::5/udp/4100/quic-v1",
            "/dns/a.example/tcp/4100",
        ] {
            assert_eq!(told(&[site, public], "unknown"), None, "{public}");
        }
        assert_eq!(told(&[], "unknown"), None, "no address is known yet");
    }
}
