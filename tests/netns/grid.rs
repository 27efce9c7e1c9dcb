//! The grid of NATs (B01): every pair of eight kinds of connection is connected, and directly where theory allows it.
//!
//! The theory is in [`way`]. A row says how soon the first packet passed after the join, and how soon the best path was
//! there.

use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::lab::internet::{Internet, Uplink};
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, until};
use crate::reach::{THREE, found, relay, reserved, start};
use crate::underlay::path;
use crate::{fast, long};

pub const CASES: &[Case] = &[
    fast!(four_telling_pairs_of_the_nat_grid_are_connected_as_theory_allows),
    long!(the_two_pairs_of_the_nat_grid_that_a_spray_brings_together_are_direct_in_fifteen_seconds),
    long!(all_pairs_of_the_nat_grid_are_connected_as_theory_allows),
];

/// How a host is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Behind {
    /// Nothing: public addresses of both families.
    Nothing,
    FullCone,
    AddressRestricted,
    PortRestricted,
    Symmetric,
    /// Two port-restricted NATs in series.
    Double,
    /// A port-restricted NAT that lets no UDP pass.
    UdpBlocked,
    /// IPv6 alone, behind a stateful firewall.
    SixOnly,
}

use Behind::{
    AddressRestricted, Double, FullCone, Nothing, PortRestricted, SixOnly, Symmetric, UdpBlocked,
};

const ALL: [Behind; 8] = [
    Nothing,
    FullCone,
    AddressRestricted,
    PortRestricted,
    Symmetric,
    Double,
    UdpBlocked,
    SixOnly,
];

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Nothing => "none",
            FullCone => "full cone",
            AddressRestricted => "address-restricted",
            PortRestricted => "port-restricted",
            Symmetric => "symmetric",
            Double => "double",
            UdpBlocked => "UDP blocked",
            SixOnly => "v6 only",
        })
    }
}

impl Behind {
    fn uplink(self) -> Option<Uplink> {
        Some(match self {
            Nothing => return None,
            FullCone => Uplink::behind(Kind::full_cone()),
            AddressRestricted => Uplink::behind(Kind::address_restricted()),
            PortRestricted => Uplink::behind(Kind::port_restricted()),
            Symmetric => Uplink::behind(Kind::symmetric()),
            Double => Uplink {
                nats: vec![Kind::port_restricted(), Kind::port_restricted()],
                ..Uplink::default()
            },
            UdpBlocked => Uplink {
                udp_blocked: true,
                ..Uplink::behind(Kind::port_restricted())
            },
            SixOnly => Uplink {
                six: true,
                ..Uplink::default()
            },
        })
    }
}

/// The best that theory allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Datagrams, at once.
    Direct,
    /// A connection of TCP.
    Tcp,
    /// Datagrams, once a port has been found.
    Spray,
    /// A relay, for this reason.
    Relayed(&'static str),
}

fn way(a: Behind, b: Behind) -> Way {
    match (a.min(b), a.max(b)) {
        (Nothing, UdpBlocked) => Way::Tcp,
        (_, UdpBlocked) | (UdpBlocked, _) => Way::Relayed("udp-blocked"),
        (Nothing | SixOnly, SixOnly) => Way::Direct,
        (_, SixOnly) => Way::Relayed("no-common-family"),
        (Symmetric, Symmetric) => Way::Relayed("symmetric-nat-both"),
        (PortRestricted, Symmetric) | (Symmetric, Double) => Way::Spray,
        _ => Way::Direct,
    }
}

impl Way {
    /// How soon it is there.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Way::Direct | Way::Tcp => 5,
            Way::Spray => 15,
            Way::Relayed(_) => 10,
        })
    }

    fn is(self, path: &Value) -> bool {
        match self {
            // A spray misses once in three thousand times: that is not taken into account.
            Way::Direct | Way::Spray => path["kind"] == "direct" && path["carrier"] == "datagram",
            Way::Tcp => path["kind"] == "direct" && path["transport"] == "tcp",
            Way::Relayed(reason) => path["kind"] == "relay" && path["reason"] == reason,
        }
    }
}

/// What became of one pair.
struct Row {
    pair: (Behind, Behind),
    first: Option<Duration>,
    best: Option<Duration>,
    path: String,
    error: Option<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time =
            |d: Option<Duration>| d.map_or("-".to_owned(), |d| format!("{:.2} s", d.as_secs_f64()));
        let (first, best) = (time(self.first), time(self.best));
        let (a, b) = self.pair;
        write!(
            f,
            "  {a:<18} {b:<18} first {first:>7}  best {best:>7}  {}",
            self.path
        )?;
        match &self.error {
            Some(error) => write!(f, "  FAILED: {error}"),
            None => Ok(()),
        }
    }
}

fn host(inet: &Internet<'_>, name: &str, number: u8, behind: Behind) -> Result<Rc<Host>> {
    match behind.uplink() {
        None => inet.host(name, number),
        Some(uplink) => Ok(inet.behind(name, number, &uplink)?.1),
    }
}

fn brief(path: &Value) -> String {
    let word = |field: &str| path[field].as_str().unwrap_or_default().to_owned();
    let kind = word("kind");
    if kind == "relay" {
        format!("relay ({})", word("reason"))
    } else {
        format!("{kind} {} {}", word("transport"), word("carrier"))
    }
}

/// One pair, from the join to the best path.
fn measure(lab: &Lab, row: &mut Row) -> Result<()> {
    let (left, right) = row.pair;
    let inet = lab.internet()?;
    // How a NAT maps is seen by two that are asked.
    let relays = [relay(&inet, "relay", 1)?, relay(&inet, "second", 2)?];
    let (a, b) = (host(&inet, "a", 10, left)?, host(&inet, "b", 11, right)?);
    for (host, behind) in [(&a, left), (&b, right)] {
        start(host, &[&relays[0], &relays[1]])?;
        if behind != Nothing {
            reserved(host)?;
        }
    }
    found(&a, &b)?;
    let joined = Instant::now();
    let inside = a.overlay("lab")?.0;
    b.ns().reaches(&inside, Duration::from_secs(20))?;
    row.first = Some(joined.elapsed());
    let way = way(left, right);
    let best = until("both have the best path", way.limit(), || {
        for (of, to) in [(&a, "b"), (&b, "a")] {
            let path = path(of, to)?;
            row.path = brief(&path);
            ensure!(way.is(&path), "{} has {path}", of.name());
        }
        Ok(true)
    });
    best?;
    row.best = Some(joined.elapsed());
    ensure!(row.first <= Some(THREE), "the first packet came late");
    ensure!(row.best <= Some(way.limit()), "the best path came late");
    // It carries.
    for (of, to) in [(&a, &b), (&b, &a)] {
        let answered = of.ns().probe(&to.overlay("lab")?.0, 20, 20)?.answered()?;
        ensure!(answered >= 19, "{answered} of 20 answered");
    }
    Ok(())
}

/// Each pair in a lab of its own; all are tried, whatever becomes of one.
fn all(pairs: &[(Behind, Behind)]) -> Result<()> {
    let mut failed = 0;
    for pair in pairs {
        let mut row = Row {
            pair: *pair,
            first: None,
            best: None,
            path: String::new(),
            error: None,
        };
        let lab = Lab::new()?;
        if let Err(error) = measure(&lab, &mut row).and_then(|()| lab.finish()) {
            println!("{}", lab.logs());
            row.error = Some(format!("{error:#}"));
            failed += 1;
        }
        println!("{row}");
    }
    if failed > 0 {
        bail!("{failed} of {} pairs failed", pairs.len());
    }
    Ok(())
}

fn four_telling_pairs_of_the_nat_grid_are_connected_as_theory_allows(_: &Lab) -> Result<()> {
    all(&[
        (Nothing, PortRestricted),
        (AddressRestricted, Symmetric),
        (Symmetric, Symmetric),
        (PortRestricted, UdpBlocked),
    ])
}

fn the_two_pairs_of_the_nat_grid_that_a_spray_brings_together_are_direct_in_fifteen_seconds(
    _: &Lab,
) -> Result<()> {
    all(&[(PortRestricted, Symmetric), (Symmetric, Double)])
}

fn all_pairs_of_the_nat_grid_are_connected_as_theory_allows(_: &Lab) -> Result<()> {
    let pairs: Vec<(Behind, Behind)> = ALL
        .iter()
        .flat_map(|a| ALL.iter().filter(move |b| *b >= a).map(move |b| (*a, *b)))
        .collect();
    let count = |is: fn(Way) -> bool| pairs.iter().filter(|(a, b)| is(way(*a, *b))).count();
    let counts = [
        count(|w| w == Way::Direct),
        count(|w| w == Way::Tcp),
        count(|w| w == Way::Spray),
        count(|w| matches!(w, Way::Relayed(_))),
    ];
    ensure!(counts == [20, 1, 2, 13], "the theory: {counts:?}");
    all(&pairs)
}
