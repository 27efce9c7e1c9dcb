//! Members that move while they talk: from one network to another, one end and both.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::ci;
use crate::lab::internet::{Internet, Site, Uplink};
use crate::lab::nat::{Kind, Weather};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};
use crate::long;
use crate::reach::{found, relay, reserved, start};
use crate::underlay::{FIVE, Transfer, datagrams, heal, ingress, pair, path};

pub const CASES: &[Case] = &[
    ci!(
        tcp_survives_when_one_end_moves_to_another_network,
        "iperf3",
        "ss"
    ),
    ci!(tcp_survives_when_both_ends_move_at_once, "iperf3", "ss"),
    ci!(control_follows_a_move_where_the_relay_is_met_by_tcp),
    ci!(of_two_uplinks_the_one_that_works_is_taken),
    ci!(a_second_uplink_takes_over_without_policy_routing),
    long!(records_follow_when_the_preferred_uplink_is_cut),
    long!(udp_that_one_uplink_blocks_passes_by_the_other),
    ci!(
        tcp_goes_on_when_the_address_family_changes_and_back,
        "iperf3",
        "ss"
    ),
];

/// A host with two uplinks: `eth0` of one site, which is up, and `eth1` of another, which is down.
pub struct Mobile {
    pub host: Rc<Host>,
    sites: [Rc<Site>; 2],
    gateways: [String; 2],
}

/// Such a host, both of whose sites are behind a NAT of this kind. They have this number and the next.
///
/// # Errors
/// The kernel refuses one of the parts.
pub fn mobile(inet: &Internet<'_>, name: &str, number: u8, nat: &Kind) -> Result<Mobile> {
    let nat = Uplink::behind(nat.clone());
    let (first, host) = inet.behind(name, number, &nat)?;
    let second = inet.site(&format!("{name}2"), number + 1, &nat)?;
    let gateway = second.second_cable(&host)?;
    // A link that was up once has another queue than one that never was.
    host.ns().ip(&["link", "set", "eth1", "up"])?;
    host.ns().ip(&["link", "set", "eth1", "down"])?;
    host.rebase()?;
    Ok(Mobile {
        host,
        sites: [first, second],
        gateways: [format!("192.168.{number}.1"), gateway],
    })
}

impl Mobile {
    /// Leaves one network, and is in the other at once: 0 is the first, 1 the second.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn moves(&self, to: usize) -> Result<()> {
        let ns = self.host.ns();
        let (from, onto) = if to == 1 {
            ("eth0", "eth1")
        } else {
            ("eth1", "eth0")
        };
        ns.ip(&["link", "set", from, "down"])?;
        ns.ip(&["link", "set", onto, "up"])?;
        ns.ip(&["route", "replace", "default", "via", &self.gateways[to]])
            .map(drop)
    }

    /// The address that it is seen by in one of the two networks.
    pub fn public(&self, at: usize) -> String {
        self.sites[at].public().to_string()
    }
}

fn two(lab: &Lab) -> Result<(Internet<'_>, Mobile, Mobile)> {
    two_with(lab, "")
}

/// Two that know the relay by those of its addresses that have this in them.
fn two_with<'a>(lab: &'a Lab, of_relay: &str) -> Result<(Internet<'a>, Mobile, Mobile)> {
    let inet = lab.internet()?;
    let mut relay = relay(&inet, "relay", 1)?;
    relay.addresses.retain(|address| address.contains(of_relay));
    let nat = Kind::port_restricted();
    let (a, b) = (mobile(&inet, "a", 10, &nat)?, mobile(&inet, "b", 20, &nat)?);
    for m in [&a, &b] {
        start(&m.host, &[&relay])?;
    }
    for m in [&a, &b] {
        reserved(&m.host)?;
    }
    found(&a.host, &b.host)?;
    datagrams(&a.host, &b.host, FIVE)?;
    Ok((inet, a, b))
}

/// What a move cost.
struct Moved {
    /// How long TCP stood still.
    stall: Duration,
    /// When a record of one end was known at the other.
    control: Duration,
    /// When the path was direct again.
    direct: Duration,
}

/// What members tell each other follows, too: a name that `b` gives now is known to `a` after that time.
fn follows(a: &Mobile, b: &Mobile) -> Result<Duration> {
    let inside = b.host.overlay("lab")?.0;
    b.host.ok(&["dns", "add", "lab", "moved", &inside])?;
    until("a record follows", Duration::from_secs(30), || {
        let names = a.host.json(&["dns", "ls", "lab"])?;
        Ok(names.to_string().contains("moved"))
    })
}

/// A09: moves who is named, under a transfer.
fn moved(a: &Mobile, b: &Mobile, who: &[&Mobile]) -> Result<Moved> {
    let transfer = Transfer::start(&a.host, &b.host, 25, "2M")?;
    std::thread::sleep(Duration::from_secs(5));
    who.iter().try_for_each(|m| m.moves(1))?;
    let begun = Instant::now();
    let told = follows(a, b);
    let found = told.as_ref().map_err(|e| anyhow!("{e:#}")).and_then(|_| {
        until(
            "it is direct, by the new addresses",
            Duration::from_secs(30),
            || {
                for (of, to) in [(a, b), (b, a)] {
                    let path = path(&of.host, to.host.name())?;
                    let via = path["via"].as_str().unwrap_or_default();
                    let at = usize::from(who.iter().any(|m| std::ptr::eq(*m, to)));
                    ensure!(
                        path["kind"] == "direct" && via.starts_with(&to.public(at)),
                        "{path}"
                    );
                }
                Ok(true)
            },
        )
    });
    let direct = begun.elapsed();
    let flow = transfer.wait(60);
    who.iter().try_for_each(|m| m.moves(0))?;
    found?;
    let (stall, control) = (flow?.stall(), told?);
    println!(
        "  TCP stood still for {stall:?}, records followed after {control:?}, direct again after {direct:?}"
    );
    Ok(Moved {
        stall,
        control,
        direct,
    })
}

/// A09, with one end in another network.
fn tcp_survives_when_one_end_moves_to_another_network(lab: &Lab) -> Result<()> {
    let (_inet, a, b) = two(lab)?;
    let Moved {
        stall,
        control,
        direct,
    } = moved(&a, &b, &[&b])?;
    // Two seconds, and a step of what measures it.
    ensure!(
        stall <= Duration::from_millis(2500),
        "TCP stood still for {stall:?}"
    );
    ensure!(direct <= Duration::from_secs(20), "direct after {direct:?}");
    ensure!(control <= FIVE, "records followed after {control:?}");
    Ok(())
}

/// A09: a TCP connection never goes on from another network, and the circuits through the relay run over it.
fn control_follows_a_move_where_the_relay_is_met_by_tcp(lab: &Lab) -> Result<()> {
    let (_inet, a, b) = two_with(lab, "/tcp/")?;
    std::thread::sleep(Duration::from_secs(3));
    b.moves(1)?;
    let control = follows(&a, &b)?;
    println!("  records followed after {control:?}");
    b.moves(0)?;
    ensure!(control <= FIVE, "records followed after {control:?}");
    Ok(())
}

/// A09, with both ends in other networks.
fn tcp_survives_when_both_ends_move_at_once(lab: &Lab) -> Result<()> {
    let (_inet, a, b) = two(lab)?;
    let Moved { stall, direct, .. } = moved(&a, &b, &[&a, &b])?;
    ensure!(
        stall <= Duration::from_secs(10),
        "TCP stood still for {stall:?}"
    );
    ensure!(direct <= Duration::from_secs(20), "direct after {direct:?}");
    Ok(())
}

/// Whether datagrams of that host were answered by the other one at an address that begins so.
fn is_known(of: &Host, name: &str, address: &str) -> Result<bool> {
    let doctor = of.byway(&["doctor", name, "--json"])?.value()?;
    let tried = doctor["peers"][0]["tried"].as_array();
    let is_it = |at: &serde_json::Value| {
        let told = at["address"].as_str().unwrap_or_default();
        told.starts_with(address) && at["answered"] == true
    };
    let known = tried.is_some_and(|all| all.iter().any(is_it));
    ensure!(known, "{doctor}");
    Ok(true)
}

/// A06: both are up. First the preferred one loses half of everything, then it is whole again and the other one is cut
/// without a sign.
fn of_two_uplinks_the_one_that_works_is_taken(lab: &Lab) -> Result<()> {
    let (_inet, a, b) = two(lab)?;
    let ns = a.host.ns();
    ns.ip(&["link", "set", "eth1", "up"])?;
    let second = &a.gateways[1];
    // What comes from an address leaves by its own uplink, as on every host of two.
    let (address, table) = ("192.168.11.200", "77");
    ns.ip(&["route", "add", "default", "via", second, "metric", "200"])?;
    ns.ip(&["route", "add", "default", "via", second, "table", table])?;
    ns.ip(&["rule", "add", "from", address, "lookup", table])?;
    let inside = b.host.overlay("lab")?.0;
    let (public, begun) = (a.public(1), Instant::now());
    let known = until("the second uplink is a spare", SOON, || {
        is_known(&b.host, "a", &public)
    });
    println!("  known after {:?}", begun.elapsed());
    let mut done = vec![known];
    let weather = |at: usize, loss| {
        a.sites[at].weather(&Weather {
            loss,
            ..Weather::default()
        });
    };
    for (what, bad, loss, limit) in [("lossy", 0, 50_000, 20), ("cut", 1, 100_000, 6)] {
        weather(1 - bad, 0);
        let train = ns.probe(&inside, 250, 20)?;
        weather(bad, loss);
        let begun = Instant::now();
        let passes = until(
            "packets pass without loss",
            Duration::from_secs(limit),
            || Ok(ns.probe(&inside, 20, 20)?.answered()? == 20),
        );
        let took = begun.elapsed();
        let silent = Duration::from_millis(20) * (250 - train.answered()?);
        println!("  {what}: {took:?}, echoes of {silent:?} were lost");
        done.push(passes);
        // Each end leaves the path within two seconds; the rest is for a machine under load.
        let is_fine = what == "lossy" || silent <= Duration::from_millis(3500);
        done.push(if is_fine {
            Ok(took)
        } else {
            Err(anyhow!("no packet for {silent:?}"))
        });
    }
    weather(1, 0);
    ns.ip(&["route", "del", "default", "via", second, "metric", "200"])?;
    ns.ip(&["rule", "del", "from", address, "lookup", table])?;
    ns.ip(&["link", "set", "eth1", "down"])?;
    done.into_iter().collect::<Result<Vec<_>>>().map(drop)
}

/// Two members; the first has two uplinks as laptops have them: default routes of different metrics, no rule, and providers
/// that drop forged sources.
struct Plain<'a> {
    _inet: Internet<'a>,
    a: Mobile,
    b: Mobile,
}

impl<'a> Plain<'a> {
    fn new(lab: &'a Lab) -> Result<Plain<'a>> {
        let (_inet, a, b) = two(lab)?;
        a.sites.iter().try_for_each(|site| site.drops_forged())?;
        let ns = a.host.ns();
        let [first, second] = &a.gateways;
        ns.ip(&["link", "set", "eth1", "up"])?;
        for (gateway, metric) in [(first, "100"), (second, "200")] {
            ns.ip(&["route", "add", "default", "via", gateway, "metric", metric])?;
        }
        ns.ip(&["route", "del", "default", "via", first, "metric", "0"])?;
        Ok(Plain { _inet, a, b })
    }

    /// Nothing passes the preferred uplink any more, or all does again.
    fn cut(&self, is_cut: bool) {
        self.a.sites[0].weather(&Weather {
            loss: if is_cut { 100_000 } else { 0 },
            ..Weather::default()
        });
    }

    /// Both uplinks are paths.
    fn both_known(&self) -> Result<Duration> {
        let begun = Instant::now();
        let is_known = |at| is_known(&self.b.host, "a", &self.a.public(at));
        until("both uplinks are paths", SOON, || {
            Ok(is_known(0)? && is_known(1)?)
        })?;
        Ok(begun.elapsed())
    }

    /// One uplink again, as before.
    fn end(&self) -> Result<()> {
        self.cut(false);
        let ns = self.a.host.ns();
        let [first, second] = &self.a.gateways;
        ns.ip(&["route", "add", "default", "via", first])?;
        for (gateway, metric) in [(first, "100"), (second, "200")] {
            ns.ip(&["route", "del", "default", "via", gateway, "metric", metric])?;
        }
        ns.ip(&["link", "set", "eth1", "down"]).map(drop)
    }
}

/// A06: both are paths at once, and packets go on when the preferred uplink is cut without a sign.
fn a_second_uplink_takes_over_without_policy_routing(lab: &Lab) -> Result<()> {
    let plain = Plain::new(lab)?;
    let (ns, inside) = (plain.a.host.ns(), plain.b.host.overlay("lab")?.0);
    let known = plain.both_known();
    let flowing = ns.probe(&inside, 10, 50)?.answered()?;
    plain.cut(true);
    let begun = Instant::now();
    let passes = until("packets pass without loss", Duration::from_secs(6), || {
        Ok(ns.probe(&inside, 20, 20)?.answered()? == 20)
    });
    println!(
        "  both known after {known:?}; packets pass {:?} after the cut",
        begun.elapsed()
    );
    plain.end()?;
    ensure!(flowing == 10, "{flowing} of 10 before anything happened");
    known.and(passes).map(drop)
}

/// A06: what members tell each other follows, too.
fn records_follow_when_the_preferred_uplink_is_cut(lab: &Lab) -> Result<()> {
    let plain = Plain::new(lab)?;
    let known = plain.both_known();
    plain.cut(true);
    let (begun, inside) = (Instant::now(), plain.b.host.overlay("lab")?.0);
    plain.b.host.ok(&["dns", "add", "lab", "over", &inside])?;
    let told = until("a record follows", Duration::from_secs(30), || {
        let names = plain.a.host.json(&["dns", "ls", "lab"])?.to_string();
        Ok(names.contains("over"))
    });
    println!("  a record follows {:?} after the cut", begun.elapsed());
    plain.end()?;
    known.and(told).map(drop)
}

/// A06: the preferred uplink lets no UDP pass. It is not blocked: the other one lets it.
fn udp_that_one_uplink_blocks_passes_by_the_other(lab: &Lab) -> Result<()> {
    let plain = Plain::new(lab)?;
    let host = &plain.a.host;
    host.terminate()?;
    let block = |blocked| plain.a.sites[0].inner().site.udp_blocked = blocked;
    block(true);
    host.start()?;
    let begun = Instant::now();
    let passes = until("datagrams pass", Duration::from_secs(30), || {
        let path = path(host, "b")?;
        ensure!(path["carrier"] == "datagram", "{path}");
        Ok(true)
    });
    println!("  datagrams pass after {:?}", begun.elapsed());
    let nat = until("it is not called blocked", SOON, || {
        let check = host.json(&["netcheck"])?;
        ensure!(check["udp"] == "works", "{check}");
        Ok(true)
    });
    block(false);
    plain.end()?;
    passes.and(nat).map(drop)
}

/// A09: IPv4 is lost under a transfer and IPv6 stays, then the other way round.
fn tcp_goes_on_when_the_address_family_changes_and_back(lab: &Lab) -> Result<()> {
    let (a, b) = pair(lab)?;
    let transfer = Transfer::start(&a, &b, 13, "2M")?;
    std::thread::sleep(Duration::from_secs(2));
    let six = |path: &serde_json::Value| path["via"].as_str().is_some_and(|v| v.starts_with('['));
    let begun_with_six = six(&path(&a, "b")?);
    let mut changes = Vec::new();
    for is_six in [begun_with_six, !begun_with_six] {
        let rule = if is_six {
            "meta protocol ip6 meta l4proto { tcp, udp } drop"
        } else {
            "meta protocol ip meta l4proto { tcp, udp } drop"
        };
        ingress(lab, "family", &[&a, &b], &[rule])?;
        let changed = until("datagrams go by the other family", SOON, || {
            for (of, to) in [(&a, "b"), (&b, "a")] {
                let path = path(of, to)?;
                ensure!(
                    path["carrier"] == "datagram" && six(&path) != is_six,
                    "{path}"
                );
            }
            Ok(true)
        });
        std::thread::sleep(Duration::from_secs(1));
        heal(lab, "family")?;
        changes.push(changed?);
    }
    let stall = transfer.wait(60)?.stall();
    println!("  the other family after {changes:?}, TCP stood still for {stall:?}");
    ensure!(
        stall <= Duration::from_secs(10) && changes.iter().all(|c| *c <= Duration::from_secs(10)),
        "{stall:?}, {changes:?}"
    );
    Ok(())
}
