//! Whether whoever joins by an invite of this node can reach it from another network: what is said when an invite is made.

use super::Report;
use super::netcheck::nat_here;
use crate::api::types::NatInfo;
use crate::p2p::Address;

/// What to do about it.
const REMEDY: &str = "name a relay in transport.bootstrap of this machine and make another invite once byway netcheck says that it \
                      keeps a place; or forward UDP and TCP port 4100 in the router to this machine, and name its public address in \
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
    match (ctx.node.endpoints().await, nat_here(ctx).await) {
        (Ok(endpoints), Ok(nat)) => note(&endpoints, listens, &nat).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// Why nobody in another network reaches this node at these addresses, in words; none where somebody may.
fn note(endpoints: &[String], listens: bool, nat: &NatInfo) -> Option<String> {
    let all: Vec<Address> = endpoints.iter().filter_map(|at| at.parse().ok()).collect();
    let leads_out = |at: &Address| at.relay().is_some() || !at.is_of_site();
    // Before the first of them is known nothing can be said.
    if all.iter().any(leads_out) || (all.is_empty() && listens) {
        return None;
    }
    let behind = match nat.mapping.as_str() {
        "independent" => Some("a NAT"),
        "dependent" => Some("a symmetric NAT"),
        _ => None,
    };
    let why = match behind {
        _ if !listens => "this machine listens on nothing (transport.listen)".to_owned(),
        Some(nat) => format!("this machine is behind {nat}, and no relay keeps a place for it"),
        None => "all addresses of this machine are private, and no relay keeps a place for it"
            .to_owned(),
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

    fn told(endpoints: &[&str], mapping: &str) -> Option<String> {
        let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        note(&endpoints, true, &nat(mapping))
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
        let nothing = note(&[], false, &nat("unknown")).unwrap();
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
