//! What a dialled address means: where to connect, and what is spoken there.

use std::net::{IpAddr, SocketAddr};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// Names of one peer that are looked up on hearsay: one before its reverse proxy, and one more while it moves.
const NAMES: usize = 2;
/// The longest path of a WebSocket, in bytes.
const PATH: usize = 128;

/// A host, as a dial names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::p2p) enum Host {
    Ip(IpAddr),
    Name(String),
}

impl Host {
    /// As a proxy is asked for it: an IPv6 address without brackets.
    pub(in crate::p2p) fn text(&self) -> String {
        match self {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.clone(),
        }
    }
}

/// A WebSocket, as an address ends in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::p2p) struct Web {
    pub(in crate::p2p) tls: bool,
    pub(in crate::p2p) path: String,
}

/// What is dialled over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::p2p) struct Target {
    pub(in crate::p2p) host: Host,
    pub(in crate::p2p) port: u16,
    /// The name that the host had before it was looked up ([`with_name`]).
    pub(in crate::p2p) name: Option<String>,
    /// Whether somebody else said the name: what it leads to is judged as an address that was heard ([`with_heard_name`]).
    pub(in crate::p2p) heard: bool,
    /// None: Noise runs directly over TCP.
    pub(in crate::p2p) web: Option<Web>,
}

impl Target {
    /// Reads `HOST/tcp/PORT`, perhaps with `/ws`, `/wss` or `/tls/ws` behind it, and the peer that is to answer; none of every
    /// other address.
    pub(in crate::p2p) fn of(address: &Multiaddr) -> Option<Target> {
        let mut parts = address.iter().peekable();
        let host = match parts.next()? {
            Protocol::Ip4(ip) => Host::Ip(ip.into()),
            Protocol::Ip6(ip) => Host::Ip(ip.into()),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
                Host::Name(name.into_owned())
            }
            _ => return None,
        };
        let Some(Protocol::Tcp(port)) = parts.next() else {
            return None;
        };
        let tls = parts.next_if_eq(&Protocol::Tls).is_some();
        let name = match parts.peek() {
            Some(Protocol::Sni(name)) => Some(name.clone().into_owned()),
            _ => None,
        };
        if name.is_some() {
            parts.next();
        }
        let is_web = |part: &Protocol<'_>| matches!(part, Protocol::Ws(_) | Protocol::Wss(_));
        let heard = tls && matches!(parts.peek(), Some(Protocol::Wss(_)));
        let web = match parts.next_if(is_web) {
            Some(Protocol::Ws(path)) => Some((tls, path)),
            Some(Protocol::Wss(path)) if !tls || name.is_some() => Some((true, path)),
            None if !tls && name.is_none() => None,
            _ => return None,
        };
        let web = match web {
            Some((tls, path)) if is_path(&path) => Some(Web {
                tls,
                path: path.into_owned(),
            }),
            Some(_) => return None,
            None => None,
        };
        // Who is to answer there, as the swarm writes it.
        parts.next_if(|part| matches!(part, Protocol::P2p(_)));
        parts.next().is_none().then_some(Target {
            host,
            port,
            name,
            heard,
            web,
        })
    }

    /// Where to connect, if that is known without asking for a name.
    pub(super) fn socket(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }

    /// The name or address that the server is called by.
    pub(super) fn called(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.host.text())
    }
}

/// Whether it may stand in the first line of a request.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= PATH && path.bytes().all(|b| b.is_ascii_graphic())
}

/// Names that mean something else, or nothing, outside the network of whoever says them.
const OF_A_SITE: [&str; 8] = [
    "arpa",
    "corp",
    "home",
    "internal",
    "invalid",
    "lan",
    "local",
    "localhost",
];

/// Whether a name may be one of the Internet's.
fn is_public_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let usual = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(usual)
    };
    let last = name
        .rsplit('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    name.len() <= 253
        && name.contains('.')
        && name.split('.').all(is_label)
        && !last.bytes().all(|b| b.is_ascii_digit())
        && !OF_A_SITE.contains(&last.as_str())
}

/// Whether it is a WebSocket inside TLS, at the usual port and path, of a host that has a name on the Internet. This is the
/// only kind of name that is looked up on hearsay: such a server often has no other address, as behind a reverse proxy.
pub(in crate::p2p) fn is_named(address: &Multiaddr) -> bool {
    let Some(Target {
        host: Host::Name(name),
        port: 443,
        web: Some(Web { tls: true, path }),
        ..
    }) = Target::of(address)
    else {
        return false;
    };
    path == "/" && is_public_name(&name)
}

/// The address of a named WebSocket as it is dialled where somebody else said it.
pub(in crate::p2p) fn with_heard_name(address: &Multiaddr) -> Multiaddr {
    match Target::of(address).map(|target| (target.host, target.heard)) {
        Some((Host::Name(name), false)) if is_named(address) => {
            let behind = [
                Protocol::Tls,
                Protocol::Sni(name.into()),
                Protocol::Wss("/".into()),
            ];
            address.iter().take(2).chain(behind).collect()
        }
        _ => address.clone(),
    }
}

/// The address with the name of its host behind the port, where a WebSocket is meant: what is looked up is put in the place
/// of the name, and the server is to hear it all the same.
pub(in crate::p2p) fn with_name(address: &Multiaddr) -> Multiaddr {
    let Some(Target {
        host: Host::Name(name),
        name: None,
        web: Some(web),
        ..
    }) = Target::of(address)
    else {
        return address.clone();
    };
    let tls = web.tls.then_some(Protocol::Tls);
    let behind = [Protocol::Sni(name.into()), Protocol::Ws(web.path.into())];
    address.iter().take(2).chain(tls).chain(behind).collect()
}

/// The address as the resolver is given it: [`with_name`], and a name that somebody else said ends with a dot. Without it the
/// search domains of this machine could make a name of its own network of one that the Internet does not have.
pub(super) fn for_lookup(address: &Multiaddr) -> Multiaddr {
    let address = with_name(address);
    let Some(Target {
        host: Host::Name(name),
        heard: true,
        ..
    }) = Target::of(&address)
    else {
        return address;
    };
    let whole = format!("{name}.").into();
    let absolute = address.replace(0, |part| match part {
        Protocol::Dns(_) => Some(Protocol::Dns(whole)),
        Protocol::Dns4(_) => Some(Protocol::Dns4(whole)),
        Protocol::Dns6(_) => Some(Protocol::Dns6(whole)),
        _ => None,
    });
    absolute.unwrap_or(address)
}

/// Keeps the first two of the names that somebody else said: each is a question to servers of that one's choice, which every
/// member asks. `is_typed` tells the addresses that a person gave.
pub(in crate::p2p) fn keep_few_names(
    addresses: &mut Vec<Multiaddr>,
    is_typed: impl Fn(&Multiaddr) -> bool,
) {
    let mut left = NAMES;
    addresses.retain(|address| {
        if !is_named(address) || is_typed(address) {
            return true;
        }
        let is_kept = left > 0;
        left = left.saturating_sub(1);
        is_kept
    });
}

/// What ends the address of a listener for WebSockets, and the rest of it.
pub(super) fn listener(address: &Multiaddr) -> Option<(Multiaddr, Multiaddr, bool)> {
    let target = Target::of(address)?;
    target.socket()?;
    let web = target.web.filter(|web| web.path == "/")?;
    let below: Multiaddr = address.iter().take(2).collect();
    let ending = if web.tls {
        Protocol::Wss("/".into())
    } else {
        Protocol::Ws("/".into())
    };
    Some((below, Multiaddr::from(ending), web.tls))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(text: &str) -> Option<Target> {
        Target::of(&text.parse().unwrap())
    }

    #[test]
    fn each_form_of_an_address_means_one_place() {
        let web = |tls: bool, path: &str| {
            Some(Web {
                tls,
                path: path.to_owned(),
            })
        };
        for (text, port, want) in [
            ("/ip4/192.0.2.1/tcp/4100", 4100, None),
            ("/ip4/192.0.2.1/tcp/80/ws", 80, web(false, "/")),
            (
                "/ip4/192.0.2.1/tcp/80/ws/p2p/12D3KooWAcwzQbKqSAJHDuRsRruiXPoa13SoqydqCmLupcMhUpb5",
                80,
                web(false, "/"),
            ),
            ("/ip6/2001:db8::1/tcp/443/wss", 443, web(true, "/")),
            ("/dns4/vpn.example/tcp/443/tls/ws", 443, web(true, "/")),
            (
                "/dns/vpn.example/tcp/443/x-parity-wss/%2fbyway%2fa",
                443,
                web(true, "/byway/a"),
            ),
        ] {
            let read = target(text).unwrap();
            assert_eq!((read.port, read.web), (port, want), "{text}");
        }
        for text in [
            "/ip4/192.0.2.1/udp/4100/quic-v1",
            "/ip4/192.0.2.1/tcp/443/tls",
            "/ip4/192.0.2.1/tcp/443/tls/wss",
            "/ip4/192.0.2.1/tcp/443/ws/ws",
            "/ip4/192.0.2.1/tcp/443/sni/a",
            "/ip4/192.0.2.1/tcp/443/wss/p2p/12D3KooWAcwzQbKqSAJHDuRsRruiXPoa13SoqydqCmLupcMhUpb5/p2p-circuit",
            "/memory/1",
            "/ip4/192.0.2.1/tcp/443/x-parity-wss/no-slash",
            "/ip4/192.0.2.1/tcp/443/x-parity-wss/%2fa%20HTTP%2f1.1%0d%0aHost:%20b",
        ] {
            assert_eq!(target(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_is_kept_for_the_server_when_it_is_looked_up() {
        let named = |text: &str| with_name(&text.parse().unwrap()).to_string();
        assert_eq!(
            named("/dns4/vpn.example/tcp/443/wss"),
            "/dns4/vpn.example/tcp/443/tls/sni/vpn.example/ws"
        );
        assert_eq!(
            named("/dns/vpn.example/tcp/80/ws"),
            "/dns/vpn.example/tcp/80/sni/vpn.example/ws"
        );
        for same in ["/ip4/192.0.2.1/tcp/443/wss", "/dns/a.example/tcp/4100"] {
            assert_eq!(named(same), same);
        }
        let found = target("/ip4/192.0.2.1/tcp/443/tls/sni/vpn.example/ws").unwrap();
        assert_eq!(found.called(), "vpn.example");
        assert_eq!(found.socket(), "192.0.2.1:443".parse().ok());
    }

    #[test]
    fn a_name_that_was_heard_is_one_of_the_internet_and_stays_marked() {
        let named = |text: &str| is_named(&text.parse().unwrap());
        assert!(named("/dns4/vpn.example.org/tcp/443/wss"));
        for bad in [
            "/dns4/vpn.example.org/tcp/8443/wss",
            "/dns4/vpn.example.org/tcp/443/ws",
            "/dns4/vpn.example.org/tcp/443/x-parity-wss/%2fadmin",
            "/dns4/vpn.example.org/tcp/443",
            "/dns4/localhost/tcp/443/wss",
            "/dns4/a.localhost/tcp/443/wss",
            "/dns4/db.lab.INTERNAL/tcp/443/wss",
            "/dns4/router.lan/tcp/443/wss",
            "/dns4/10.0.0.1/tcp/443/wss",
            "/dns4/a..b/tcp/443/wss",
        ] {
            assert!(!named(bad), "{bad}");
        }
        let marked = with_heard_name(&"/dns4/a.example/tcp/443/wss".parse().unwrap());
        assert_eq!(with_name(&marked), marked);
        let found = marked.replace(0, |_| Some(Protocol::Ip4([192, 0, 2, 1].into())));
        let found = Target::of(&found.unwrap()).unwrap();
        assert!(found.heard && found.called() == "a.example");
        assert!(!target("/ip4/192.0.2.1/tcp/443/wss").unwrap().heard);
    }

    #[test]
    fn a_name_that_was_heard_is_looked_up_as_it_stands_and_one_that_was_typed_by_search_too() {
        let given = |text: &str| for_lookup(&text.parse().unwrap()).to_string();
        let heard = with_heard_name(&"/dns4/db.prod/tcp/443/wss".parse().unwrap());
        assert_eq!(
            given(&heard.to_string()),
            "/dns4/db.prod./tcp/443/tls/sni/db.prod/wss"
        );
        assert_eq!(
            given("/dns4/db.prod/tcp/443/wss"),
            "/dns4/db.prod/tcp/443/tls/sni/db.prod/ws"
        );
        for same in ["/dns/db.prod/tcp/4100", "/ip4/192.0.2.1/tcp/443/wss"] {
            assert_eq!(given(same), same);
        }
    }

    #[test]
    fn of_many_names_that_were_heard_two_are_looked_up() {
        let name = |n: u8| format!("/dns4/n{n}.example/tcp/443/wss");
        let ip = "/ip4/192.0.2.1/tcp/443/wss".to_owned();
        let all = [name(0), name(1), ip.clone(), name(2), name(3)];
        let all: Vec<Multiaddr> = all.iter().map(|text| text.parse().unwrap()).collect();
        let kept = |is_typed: &dyn Fn(&Multiaddr) -> bool| {
            let mut kept = all.clone();
            keep_few_names(&mut kept, is_typed);
            kept
        };
        assert_eq!(kept(&|_| false), all[..3]);
        assert_eq!(kept(&|_| true), all);
    }

    proptest! {
        #[test]
        fn no_address_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(address) = Multiaddr::try_from(bytes) {
                let _ = (Target::of(&with_name(&address)), listener(&address));
            }
        }
    }
}
