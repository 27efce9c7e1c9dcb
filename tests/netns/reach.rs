//! Two members that no address leads to: joined, connected and brought together through a relay.

use std::fs::OpenOptions;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::drive::peer;
use crate::fast;
use crate::lab::internet::{Internet, Site, Uplink};
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::membership::answer_request;
use crate::underlay::{FIVE, PORT, datagrams, path};

pub const CASES: &[Case] = &[
    fast!(two_behind_port_restricted_nats_join_by_invite_and_are_direct_in_five_seconds),
    fast!(while_no_hole_opens_status_names_the_relay_and_why_and_direct_follows),
    fast!(behind_two_nats_a_bare_id_is_joined_through_the_relay_that_peer_names),
];

/// How soon the first packet passes, by whatever path.
pub const THREE: Duration = Duration::from_secs(3);

/// Adds lines to a host's configuration.
pub fn configure(host: &Host, lines: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .open(host.dir().join("byway.toml"))?;
    Ok(file.write_all(lines.as_bytes())?)
}

/// A meeting point: who it is, and how others name it in their configuration.
pub struct Relay {
    pub host: Rc<Host>,
    pub id: String,
    pub addresses: Vec<String>,
}

/// A public node that only relays, at work.
///
/// # Errors
/// It does not start.
pub fn relay(inet: &Internet<'_>, name: &str, number: u8) -> Result<Relay> {
    relay_at(inet.host(name, number)?)
}

/// The same on a public host that is there.
///
/// # Errors
/// It does not start.
pub fn relay_at(host: Rc<Host>) -> Result<Relay> {
    let six = Some(host.under6().to_owned());
    serving(host, six)
}

/// A relay over a line whose weather can be changed; IPv4 only.
///
/// # Errors
/// It does not start.
pub fn relay_over_a_line(inet: &Internet<'_>, name: &str, number: u8) -> Result<(Rc<Site>, Relay)> {
    let (site, host) = inet.behind(name, number, &Uplink::open())?;
    Ok((site, serving(host, None)?))
}

fn serving(host: Rc<Host>, six: Option<String>) -> Result<Relay> {
    configure(&host, "relay_only = true\n")?;
    host.start()?;
    let id = peer(&host)?;
    let six = six.map(|address| format!("/ip6/{address}"));
    let families: Vec<String> = std::iter::once(format!("/ip4/{}", host.under4()))
        .chain(six)
        .collect();
    let both = |family: &String| {
        [
            format!("{family}/udp/{PORT}/quic-v1/p2p/{id}"),
            format!("{family}/tcp/{PORT}/p2p/{id}"),
        ]
    };
    let addresses = families.iter().flat_map(both).collect();
    Ok(Relay {
        host,
        id,
        addresses,
    })
}

/// Starts the daemon of a host that knows these meeting points.
///
/// # Errors
/// It does not start.
pub fn start(host: &Host, relays: &[&Relay]) -> Result<()> {
    start_with(host, relays, "")
}

/// As [`start`], with further lines of `[transport]`.
///
/// # Errors
/// It does not start.
pub fn start_with(host: &Host, relays: &[&Relay], lines: &str) -> Result<()> {
    let all: Vec<&String> = relays.iter().flat_map(|r| &r.addresses).collect();
    configure(host, &format!("[transport]\nbootstrap = {all:?}\n{lines}"))?;
    host.start()
}

/// Waits until others reach a host through a relay.
///
/// # Errors
/// It has no reservation in time.
pub fn reserved(host: &Host) -> Result<Duration> {
    until(
        &format!("{} has a place at a relay", host.name()),
        SOON,
        || {
            let said = host.json(&["id"])?;
            ensure!(
                said["addresses"].to_string().contains("p2p-circuit"),
                "{said}"
            );
            Ok(true)
        },
    )
}

/// `a` founds `lab`, and `b` joins it by invite.
///
/// # Errors
/// One of the steps fails.
pub fn found(a: &Host, b: &Host) -> Result<()> {
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&["join", &invite]).map(drop)
}

/// Waits until `of` reaches `to` through a relay; the path.
///
/// # Errors
/// It does not in time.
pub fn relayed(of: &Host, to: &str, limit: Duration) -> Result<Value> {
    let mut last = Value::Null;
    until(
        &format!("{} reaches {to} through a relay", of.name()),
        limit,
        || {
            last = path(of, to)?;
            ensure!(last["kind"] == "relay", "{last}");
            Ok(true)
        },
    )?;
    Ok(last)
}

/// A relay and two sites of one kind, each with a host; the daemons run and have a place at the relay.
pub struct Two {
    pub relay: Relay,
    pub sites: [Rc<Site>; 2],
    pub a: Rc<Host>,
    pub b: Rc<Host>,
}

/// # Errors
/// One of the parts does not start.
pub fn two(inet: &Internet<'_>, here: &Uplink, there: &Uplink) -> Result<Two> {
    two_with(inet, here, there, &[])
}

/// As [`two`], with further relays that both know.
///
/// # Errors
/// One of the parts does not start.
pub fn two_with(
    inet: &Internet<'_>,
    here: &Uplink,
    there: &Uplink,
    more: &[&Relay],
) -> Result<Two> {
    let relay = relay(inet, "relay", 1)?;
    let relays: Vec<&Relay> = std::iter::once(&relay)
        .chain(more.iter().copied())
        .collect();
    let (site_a, a) = inet.behind("a", 10, here)?;
    let (site_b, b) = inet.behind("b", 11, there)?;
    for host in [&a, &b] {
        start(host, &relays)?;
    }
    for host in [&a, &b] {
        reserved(host)?;
    }
    let sites = [site_a, site_b];
    Ok(Two { relay, sites, a, b })
}

fn two_behind_port_restricted_nats_join_by_invite_and_are_direct_in_five_seconds(
    lab: &Lab,
) -> Result<()> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::port_restricted());
    let Two { a, b, sites, .. } = two(&inet, &nat, &nat)?;
    found(&a, &b)?;
    let joined = Instant::now();
    let inside = a.overlay("lab")?.0;
    b.ns().reaches(&inside, THREE)?;
    let first = joined.elapsed();
    datagrams(&a, &b, FIVE)?;
    println!(
        "  first packet after {first:?}, direct after {:?}",
        joined.elapsed()
    );
    ensure!(joined.elapsed() <= FIVE, "it took {:?}", joined.elapsed());
    for (of, to, site) in [(&a, "b", &sites[1]), (&b, "a", &sites[0])] {
        let path = path(of, to)?;
        let public = format!("{}:{PORT}", site.public());
        ensure!(
            path["transport"] == "udp" && path["via"] == public,
            "{path}"
        );
    }
    b.ok(&["ping", "a", "--until-direct", "-c", "3"])?;
    b.ok(&["ping", "a", "--path", "direct", "-c", "1"])?;
    b.ns().reaches(&inside, SOON).map(drop)
}

/// B07: the hole opens later, and closes again.
fn while_no_hole_opens_status_names_the_relay_and_why_and_direct_follows(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::port_restricted());
    let Two { relay, a, b, sites } = two(&inet, &nat, &nat)?;
    inet.part(&sites[0], &sites[1])?;
    found(&a, &b)?;
    let inside = a.overlay("lab")?.0;
    b.ns().reaches(&inside, THREE)?;
    for (of, to) in [(&a, "b"), (&b, "a")] {
        let path = relayed(of, to, THREE)?;
        ensure!(
            path["via"] == relay.id.as_str(),
            "not via {}: {path}",
            relay.id
        );
        let reason = text(&path, "reason")?;
        ensure!(reason == "probing" || reason == "peer-silent", "{path}");
        let said = of.ok(&["status"])?;
        let line = said
            .lines()
            .find(|l| l.starts_with(to))
            .context("its line")?;
        ensure!(
            line.contains("relay") && line.contains('('),
            "no reason in {line}"
        );
    }
    let forwards = relay.host.json(&["relay", "ls"])?;
    ensure!(
        forwards["sessions"]
            .as_array()
            .is_some_and(|s| !s.is_empty()),
        "{forwards}"
    );
    let begun = Instant::now();
    let refused = a.byway(&["ping", "b", "--path", "direct", "-c", "9"])?;
    ensure!(
        refused.code == 8
            && refused
                .err
                .contains("b is not reached directly: its path is relay"),
        "{refused}"
    );
    ensure!(begun.elapsed() < THREE, "after {:?}", begun.elapsed());
    inet.heal()?;
    datagrams(&a, &b, SOON)?;
    // The relay is kept ready, and can be measured while packets go straight.
    for (of, to) in [(&a, "b"), (&b, "a")] {
        let told = of.json(&["ping", to, "--path", "relay", "-c", "2"])?;
        ensure!(
            told["received"] == 2
                && told["over"]["via"] == relay.id.as_str()
                && told["path"]["kind"] == "direct",
            "{told}"
        );
        let said = of.ok(&["ping", to, "--path", "direct", "-c", "1"])?;
        ensure!(said.contains("over direct udp"), "{said}");
    }
    for (of, to) in [(&a, &b), (&b, &a)] {
        let probes = of.ns().probe(&to.overlay("lab")?.0, 50, 20)?;
        let answered = probes.answered()?;
        ensure!(answered >= 48, "{answered} of 50 after the change");
    }
    let probes = b.ns().probe(&inside, 200, 20)?;
    inet.part(&sites[0], &sites[1])?;
    relayed(&a, "b", FIVE)?;
    relayed(&b, "a", FIVE)?;
    let answered = probes.answered()?;
    println!("  {answered} of 200 in the four seconds from the loss of the hole on");
    // Two seconds of them are the time in which a silent path is left.
    ensure!(
        answered >= 80,
        "{answered} of 200 while the relay took over"
    );
    Ok(())
}

/// Neither an invite nor a configured meeting point tells who joins of the relay: only `--peer` does.
fn behind_two_nats_a_bare_id_is_joined_through_the_relay_that_peer_names(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::port_restricted());
    let relay = relay(&inet, "relay", 1)?;
    let (_here, a) = inet.behind("a", 10, &nat)?;
    let (_there, b) = inet.behind("b", 11, &nat)?;
    start(&a, &[&relay])?;
    b.start()?;
    reserved(&a)?;
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    let hop = relay.addresses.first().context("its address")?;
    let nobody = format!("{hop}/p2p-circuit");
    b.byway(&["join", &id, "--peer", &nobody])?
        .assert_error(2, "E-MULTIADDR")?;
    let through = format!("{nobody}/p2p/{}", peer(&a)?);
    let begun = Instant::now();
    let join = b.spawn(&[
        "--json",
        "join",
        &id,
        "--peer",
        &through,
        "--timeout",
        "20s",
    ])?;
    answer_request(&a, "approve")?;
    let joined = join.wait()?;
    ensure!(
        joined.code == 0 && joined.value()?["state"] == "ready",
        "{joined}"
    );
    let inside = a.overlay("lab")?.0;
    b.ns().reaches(&inside, THREE)?;
    println!("  joined and reached after {:?}", begun.elapsed());
    Ok(())
}
