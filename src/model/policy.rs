//! What a subnet's founder may do to the machine of one who joins: which prefixes and domains are taken, and which never.
//!
//! A joined prefix is routed into the subnet by this machine, and a joined domain is answered by the subnet's members. Private
//! ones are taken from anybody; everything else is somebody's on the Internet and has to be allowed by the person who joins. A
//! prefix that holds an address this machine cannot do without is refused in any case.
//!
//! Pure. The ID of a subnet is the hash of its [`Genesis`], so what is judged here is what will hold.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::error::{Code, Error, Hint, Kind, Result};
use super::id::{Name, SubnetId};
use super::ipam::overlaps;
use super::join::fingerprint;
use super::record::{Genesis, is_domain};

/// Where the names of private zones end (reserved for private use by ICANN in 2024).
const PRIVATE_DOMAIN: &str = "internal";
/// Shortest prefix of a private range that is taken unasked: a /8 would take all of 10/8 away from this machine's site.
const SHORTEST4: u8 = 12;
/// The shortest unique local IPv6 prefix that every joiner takes.
const SHORTEST6: u8 = 32;

/// RFC 1918, and RFC 6598, which stands for the same in practice.
const PRIVATE4: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
];
/// This host, loopback, link-local, multicast, and what is reserved with the broadcast address: no pool overlaps them.
const NO_POOL4: [(Ipv4Addr, u8, &str); 5] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "means this host"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "is loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "is link-local"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "is multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "is reserved"),
];
/// The same of IPv6, where only what is unique local or global unicast can be a pool.
const NO_POOL6: [(Ipv6Addr, u8, &str); 4] = [
    (Ipv6Addr::UNSPECIFIED, 8, "is reserved, with loopback in it"),
    (
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
        10,
        "is link-local",
    ),
    (
        Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0),
        10,
        "was site-local and is no more (RFC 3879)",
    ),
    (
        Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
        8,
        "is multicast",
    ),
];
/// Unique local (RFC 4193), and global unicast: a pool lies in one of them.
const ULA: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);
/// Global unicast addresses of IPv6 (RFC 4291, section 2.4).
const GLOBAL6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What a person allows beyond what every joiner takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// Prefixes; each allows what lies inside it.
    pub prefixes: Vec<IpNet>,
    /// Domains; each allows itself and what lies below it.
    pub domains: Vec<String>,
}

/// An address this machine cannot do without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The address that has to stay reachable as it is now.
    pub address: IpAddr,
    /// What is there, to be read after "it holds": `the resolver 192.0.2.53`.
    pub what: String,
}

/// What of the machine a prefix is held against.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Around {
    /// Every prefix the machine routes, with the link it goes to.
    pub routed: Vec<(IpNet, String)>,
    /// Resolvers, gateways, and where peers are reached.
    pub needs: Vec<Need>,
    /// Names of links that are not this daemon's.
    pub links: BTreeSet<String>,
}

impl Around {
    /// What no pool is picked from.
    pub fn taken(&self) -> impl Iterator<Item = IpNet> {
        self.routed
            .iter()
            .map(|(prefix, _)| *prefix)
            .chain(self.needs.iter().map(|need| need.address.into()))
    }
}

fn covers4(nets: &[(Ipv4Addr, u8)], pool: Ipv4Net) -> bool {
    nets.iter()
        .filter_map(|(a, len)| Ipv4Net::new(*a, *len).ok())
        .any(|net| net.contains(&pool))
}

fn covers6((address, length): (Ipv6Addr, u8), pool: Ipv6Net) -> bool {
    Ipv6Net::new(address, length).is_ok_and(|net| net.contains(&pool))
}

/// Whether an IPv4 prefix can be a subnet's pool at all: whole, from /8 to /30, of addresses that can be routed.
pub fn is_pool4(pool: Ipv4Net) -> bool {
    pool_fault(pool.into()).is_none()
}

/// The same of an IPv6 prefix, from /16 to /64: unique local or global unicast.
pub fn is_pool6(pool: Ipv6Net) -> bool {
    pool_fault(pool.into()).is_none()
}

/// Why a prefix can be no subnet's pool, to be read after it.
pub fn pool_fault(pool: IpNet) -> Option<String> {
    let special4 = NO_POOL4
        .iter()
        .filter_map(|(a, len, why)| Some((IpNet::V4(Ipv4Net::new(*a, *len).ok()?), *why)));
    let special6 = NO_POOL6
        .iter()
        .filter_map(|(a, len, why)| Some((IpNet::V6(Ipv6Net::new(*a, *len).ok()?), *why)));
    let (lengths, like, inside) = match pool {
        IpNet::V4(_) => (8..=30, "10.77.0.0/16", true),
        IpNet::V6(six) => (
            16..=64,
            "fd7a:31c0:9d2e::/48",
            covers6(ULA, six) || covers6(GLOBAL6, six),
        ),
    };
    if pool.trunc() != pool {
        return Some(format!(
            "is no network address; the prefix is {}",
            pool.trunc()
        ));
    }
    if let Some((net, why)) = special4
        .chain(special6)
        .find(|(net, _)| overlaps(*net, pool))
    {
        return Some(format!("cannot be a subnet's pool: {net} {why}"));
    }
    if !lengths.contains(&pool.prefix_len()) {
        let (least, most) = (lengths.start(), lengths.end());
        return Some(format!(
            "cannot be a subnet's pool: its length is from {least} to {most}, as in {like}"
        ));
    }
    (!inside).then(|| {
        "cannot be a subnet's pool: it is neither unique local (fc00::/7) nor global (2000::/3)"
            .to_owned()
    })
}

/// Whether `text` can be a subnet's domain: two labels at least, so that nobody founds `com`.
pub fn is_subnet_domain(text: &str) -> bool {
    is_domain(text) && text.contains('.')
}

/// Whether every joiner takes the prefix unasked.
fn is_private(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(pool) => pool.prefix_len() >= SHORTEST4 && covers4(&PRIVATE4, pool),
        IpNet::V6(pool) => pool.prefix_len() >= SHORTEST6 && covers6(ULA, pool),
    }
}

fn is_below(domain: &str, above: &str) -> bool {
    domain
        .strip_suffix(above)
        .is_some_and(|rest| rest.ends_with('.') && rest.len() > 1)
}

fn prefixes(genesis: &Genesis) -> Vec<IpNet> {
    let six = genesis.prefix6(genesis.id()).map(IpNet::V6);
    genesis
        .cidr4
        .map(IpNet::V4)
        .into_iter()
        .chain(six)
        .collect()
}

/// What a joiner of the subnet has to type beside the invite: empty where nothing, else for example
/// `--allow-prefix 203.0.113.0/24 --allow-domain example.org`.
pub fn flags(genesis: &Genesis) -> String {
    missing(genesis, &Allowed::default())
}

/// The flags that allow what is not `allowed` yet.
fn missing(genesis: &Genesis, allowed: &Allowed) -> String {
    let free = |prefix: &IpNet| {
        is_private(*prefix) || allowed.prefixes.iter().any(|net| net.contains(prefix))
    };
    let mut words: Vec<String> = prefixes(genesis)
        .iter()
        .filter(|p| !free(p))
        .map(|prefix| format!("--allow-prefix {prefix}"))
        .collect();
    let domain = genesis.domain.as_str();
    let named = || {
        allowed
            .domains
            .iter()
            .any(|d| domain == d || is_below(domain, d))
    };
    if !is_below(domain, PRIVATE_DOMAIN) && !named() {
        words.push(format!("--allow-domain {domain}"));
    }
    words.join(" ")
}

/// Refuses a subnet whose prefixes or domain this machine does not take. `name` is what the subnet will be called here,
/// `target` what the person typed to join: `INVITE`, or the ID.
///
/// # Errors
/// `E-JOIN-POLICY`; the message names the owner's fingerprint and what to type, where typing helps.
pub fn judge(
    genesis: &Genesis,
    name: &Name,
    target: &str,
    allowed: &Allowed,
    needs: &[Need],
) -> Result<()> {
    let refuse = |why: String| {
        let owner = fingerprint(genesis.owner);
        let message =
            format!("subnet {name} of the owner with fingerprint {owner} is not joined: {why}");
        Error::new(Kind::Refused, Code::JoinPolicy, message)
    };
    for prefix in prefixes(genesis) {
        if let Some(need) = needs.iter().find(|need| prefix.contains(&need.address)) {
            let why = format!(
                "its prefix {prefix} holds {}, which this machine cannot do without",
                need.what
            );
            return Err(refuse(why).hint(Hint::AskForPrefixAnyway));
        }
    }
    let flags = missing(genesis, allowed);
    if flags.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = prefixes(genesis).iter().map(ToString::to_string).collect();
    let why = format!(
        "it would route {} and answer names below {}; that needs {flags}",
        all.join(" and "),
        genesis.domain
    );
    // All of them, since whoever types the line anew has to repeat what was allowed already.
    Err(refuse(why).hint(Hint::JoinAllowing {
        target: target.to_owned(),
        flags: self::flags(genesis),
    }))
}

/// The name a subnet has where no other was asked for, its prefixes, domain and owner: what a person who joins is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The name that the founder gave.
    pub founded_as: Name,
    /// The IPv4 pool, where the subnet has one.
    pub cidr4: Option<Ipv4Net>,
    /// The IPv6 pool, where the subnet has one.
    pub cidr6: Option<Ipv6Net>,
    /// The domain that its names are under.
    pub domain: String,
    /// The owner's fingerprint: what two people compare.
    pub owner_fingerprint: String,
}

impl Terms {
    /// The terms as the genesis states them.
    pub fn of(genesis: &Genesis, id: SubnetId) -> Terms {
        Terms {
            founded_as: genesis.name.clone(),
            cidr4: genesis.cidr4,
            cidr6: genesis.prefix6(id),
            domain: genesis.domain.clone(),
            owner_fingerprint: fingerprint(genesis.owner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_no_pool_says_why() {
        for (pool, why) in [
            ("169.254.0.0/16", "169.254.0.0/16 is link-local"),
            ("224.0.0.0/8", "224.0.0.0/4 is multicast"),
            ("240.0.0.0/8", "240.0.0.0/4 is reserved"),
            ("127.0.0.0/8", "127.0.0.0/8 is loopback"),
            ("0.0.0.0/8", "0.0.0.0/8 means this host"),
            ("fe80::/64", "fe80::/10 is link-local"),
            ("ff00::/16", "ff00::/8 is multicast"),
            ("::/64", "loopback"),
            ("4000::/32", "neither unique local"),
            ("10.0.0.0/31", "from 8 to 30"),
            ("fd00::/8", "from 16 to 64"),
        ] {
            let said = pool_fault(pool.parse().unwrap());
            assert!(
                said.as_ref().is_some_and(|s| s.contains(why)),
                "{pool}: {said:?}"
            );
        }
        for pool in ["10.77.0.0/16", "fd00:1::/32", "fd00::/16", "2001:db8::/48"] {
            assert_eq!(pool_fault(pool.parse().unwrap()), None, "{pool}");
        }
    }
    use crate::model::id::PeerId;
    use crate::model::record::{Admission, Prefix6};

    fn founded(cidr4: &str, cidr6: Option<&str>, domain: &str) -> Genesis {
        Genesis {
            version: 1,
            owner: PeerId([1; 32]),
            name: "game".parse().unwrap(),
            cidr4: cidr4.parse().ok(),
            cidr6: cidr6.map_or(Prefix6::Derived, |c| Prefix6::Given(c.parse().unwrap())),
            block4: 32,
            admission: Admission::Approve,
            domain: domain.to_owned(),
            grant_life: 3600,
            created: 1,
            salt: [0; 16],
        }
    }

    fn judged(genesis: &Genesis, allowed: &Allowed, needs: &[Need]) -> Result<()> {
        judge(genesis, &genesis.name, "INVITE", allowed, needs)
    }

    #[test]
    fn private_prefixes_and_internal_domains_are_taken_unasked() {
        for cidr4 in [
            "10.77.0.0/16",
            "10.0.0.0/12",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/12",
            "100.127.0.0/16",
        ] {
            let genesis = founded(cidr4, None, "game.internal");
            assert_eq!(
                judged(&genesis, &Allowed::default(), &[]),
                Ok(()),
                "{cidr4}"
            );
            assert_eq!(flags(&genesis), "");
        }
        for cidr6 in ["fd00::/32", "fd7a:31c0:9d2e::/48", "fc00::/64"] {
            assert_eq!(
                flags(&founded("none", Some(cidr6), "a.b.internal")),
                "",
                "{cidr6}"
            );
        }
    }

    #[test]
    fn everything_else_needs_the_flag_that_the_error_names() {
        for (cidr4, cidr6, domain, words) in [
            (
                "140.82.0.0/16",
                Some("2a00:1450::/40"),
                "github.com",
                "--allow-prefix 140.82.0.0/16 --allow-prefix 2a00:1450::/40 --allow-domain github.com",
            ),
            (
                "10.0.0.0/8",
                None,
                "game.internal",
                "--allow-prefix 10.0.0.0/8",
            ),
            (
                "100.0.0.0/8",
                None,
                "game.internal",
                "--allow-prefix 100.0.0.0/8",
            ),
            (
                "172.32.0.0/16",
                None,
                "game.internal",
                "--allow-prefix 172.32.0.0/16",
            ),
            (
                "10.1.0.0/16",
                Some("fd00::/31"),
                "game.internal",
                "--allow-prefix fd00::/31",
            ),
            (
                "10.1.0.0/16",
                Some("2001:db8::/48"),
                "game.internal",
                "--allow-prefix 2001:db8::/48",
            ),
            (
                "10.1.0.0/16",
                None,
                "game.internal.example",
                "--allow-domain game.internal.example",
            ),
            (
                "10.1.0.0/16",
                None,
                "notinternal.xinternal",
                "--allow-domain notinternal.xinternal",
            ),
        ] {
            let genesis = founded(cidr4, cidr6, domain);
            assert_eq!(flags(&genesis), words);
            let error = judged(&genesis, &Allowed::default(), &[]).unwrap_err();
            assert_eq!((error.kind, error.code), (Kind::Refused, Code::JoinPolicy));
            assert!(
                error.message.contains(words)
                    && error.message.contains(&fingerprint(PeerId([1; 32]))),
                "{error}"
            );
            assert_eq!(
                error.hint,
                Some(Hint::JoinAllowing {
                    target: "INVITE".into(),
                    flags: words.into()
                })
            );
        }
    }

    #[test]
    fn a_flag_allows_what_lies_inside_it_and_nothing_beside() {
        let genesis = founded("140.82.0.0/16", None, "www.github.com");
        let allow = |prefix: &str, domain: &str| Allowed {
            prefixes: vec![prefix.parse().unwrap()],
            domains: vec![domain.to_owned()],
        };
        assert_eq!(
            judged(&genesis, &allow("140.82.0.0/16", "www.github.com"), &[]),
            Ok(())
        );
        assert_eq!(
            judged(&genesis, &allow("140.0.0.0/8", "github.com"), &[]),
            Ok(())
        );
        for (prefix, domain) in [
            ("140.82.0.0/17", "github.com"),
            ("140.82.0.0/16", "hub.com"),
            ("140.82.0.0/16", "x.www.github.com"),
        ] {
            assert!(
                judged(&genesis, &allow(prefix, domain), &[]).is_err(),
                "{prefix} {domain}"
            );
        }
    }

    #[test]
    fn no_flag_allows_a_prefix_that_holds_what_this_machine_needs() {
        let need = Need {
            address: "10.1.0.53".parse().unwrap(),
            what: "the resolver 10.1.0.53".into(),
        };
        let genesis = founded("10.1.0.0/16", None, "game.internal");
        let all = Allowed {
            prefixes: vec!["0.0.0.0/0".parse().unwrap()],
            domains: vec![],
        };
        let error = judged(&genesis, &all, std::slice::from_ref(&need)).unwrap_err();
        assert_eq!(error.code, Code::JoinPolicy);
        assert!(
            error.message.contains("the resolver 10.1.0.53")
                && error.hint == Some(Hint::AskForPrefixAnyway),
            "{error}"
        );
        assert_eq!(
            judged(
                &founded("10.2.0.0/16", None, "game.internal"),
                &all,
                &[need]
            ),
            Ok(())
        );
    }

    #[test]
    fn a_genesis_made_by_hand_has_the_bounds_of_the_command_line() {
        assert!(Genesis::parse(&founded("10.1.0.0/16", None, "game.internal").encode()).is_ok());
        let mut bad = vec![];
        for cidr4 in [
            "0.0.0.0/0",
            "10.0.0.0/7",
            "8.0.0.0/6",
            "10.1.0.1/16",
            "10.1.0.0/31",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/8",
            "240.0.0.0/8",
            "0.0.0.0/8",
        ] {
            bad.push(founded(cidr4, None, "game.internal"));
        }
        for cidr6 in [
            "::/16",
            "2000::/15",
            "fe80::/64",
            "ff00::/16",
            "fd00::/65",
            "fd00::1/64",
            "64:ff9b::/64",
        ] {
            bad.push(founded("10.1.0.0/16", Some(cidr6), "game.internal"));
        }
        for domain in [
            "com",
            "internal",
            "",
            "a..b",
            "UPPER.internal",
            "-a.internal",
        ] {
            bad.push(founded("10.1.0.0/16", None, domain));
        }
        for genesis in bad {
            assert!(Genesis::parse(&genesis.encode()).is_err(), "{genesis:?}");
        }
    }
}
