//! The NATs of the laboratory, proven with plain sockets: who is seen as whom, and who gets through.

use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::internet::{Site, Uplink};
use crate::lab::nat::machine::{Dependence, Ports};
use crate::lab::nat::{Kind, Weather};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};

pub const CASES: &[Case] = &[
    fast!(each_kind_of_nat_maps_and_filters_sockets_as_it_says),
    fast!(a_double_nat_and_a_firewall_let_in_answers_only),
    fast!(where_udp_is_blocked_sockets_of_tcp_pass_the_nat),
    fast!(lifetimes_ports_and_reboots_are_seen_by_sockets),
    fast!(the_line_of_a_site_delays_loses_and_drops_what_is_large),
];

/// How long a datagram that does not come is waited for.
const SHORT: Duration = Duration::from_millis(150);

/// A socket in a host's namespace.
fn socket(host: &Host, address: &str) -> Result<UdpSocket> {
    let socket = host.ns().udp_socket(address)?;
    socket.set_read_timeout(Some(SHORT))?;
    Ok(socket)
}

/// Sends `text`; by whom it was heard at the other socket, if it was.
fn hears(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> Result<Option<SocketAddr>> {
    // What came before is not it.
    at.set_nonblocking(true)?;
    let mut buffer = [0; 2048];
    while at.recv_from(&mut buffer).is_ok() {}
    at.set_nonblocking(false)?;
    from.send_to(b"hello", to)?;
    Ok(at.recv_from(&mut buffer).ok().map(|(_, source)| source))
}

/// Two public hosts, and a host behind a NAT.
struct World {
    a: Rc<Host>,
    b: Rc<Host>,
    site: Rc<Site>,
    host: Rc<Host>,
}

fn world(lab: &Lab, uplink: &Uplink) -> Result<World> {
    let inet = lab.internet()?;
    let (a, b) = (inet.host("a", 1)?, inet.host("b", 2)?);
    let (site, host) = inet.behind("h", 10, uplink)?;
    Ok(World { a, b, site, host })
}

impl World {
    /// Other behaviour, empty tables.
    fn become_kind(&self, kind: &Kind) -> Result<()> {
        {
            let mut inner = self.site.inner();
            let nat = inner.site.nats.last_mut().context("no NAT")?;
            *nat.kind() = kind.clone();
        }
        self.site.reboot(110)
    }
}

fn each_kind_of_nat_maps_and_filters_sockets_as_it_says(lab: &Lab) -> Result<()> {
    let w = world(lab, &Uplink::behind(Kind::full_cone()))?;
    let inside = socket(&w.host, "0.0.0.0:4100")?;
    let (a, a2, b) = (
        socket(&w.a, "203.0.113.1:7000")?,
        socket(&w.a, "203.0.113.1:7001")?,
        socket(&w.b, "203.0.113.2:7000")?,
    );
    let kinds = [
        ("full cone", Kind::full_cone(), true, [true, true, true]),
        (
            "address-restricted",
            Kind::address_restricted(),
            true,
            [true, true, false],
        ),
        (
            "port-restricted",
            Kind::port_restricted(),
            true,
            [true, false, false],
        ),
        ("symmetric", Kind::symmetric(), false, [true, false, false]),
    ];
    for (name, kind, same, lets_in) in kinds {
        w.become_kind(&kind)?;
        let seen = hears(&inside, a.local_addr()?, &a)?.context("it does not come out")?;
        let mut passed = Vec::new();
        for outside in [&a, &a2, &b] {
            passed.push(hears(outside, seen, &inside)?.is_some());
        }
        ensure!(passed == lets_in, "{name}: {passed:?}");
        let other = hears(&inside, b.local_addr()?, &b)?.context("it does not come out")?;
        ensure!((other == seen) == same, "{name}: {seen} and {other}");
        ensure!(seen.ip() == w.site.public(), "{seen}");
        ensure!(!same || seen.port() == 4100, "{seen} kept no port");
    }
    // An echo request passes too.
    w.host.ns().reaches(w.a.under4(), SOON).map(drop)
}

fn a_double_nat_and_a_firewall_let_in_answers_only(lab: &Lab) -> Result<()> {
    let uplink = Uplink {
        nats: vec![Kind::port_restricted(), Kind::port_restricted()],
        six: true,
        ..Uplink::default()
    };
    let w = world(lab, &uplink)?;
    let (a, a2) = (
        socket(&w.a, "203.0.113.1:7000")?,
        socket(&w.a, "203.0.113.1:7001")?,
    );
    let inside = socket(&w.host, "0.0.0.0:4100")?;
    let seen = hears(&inside, a.local_addr()?, &a)?.context("it does not come out")?;
    ensure!(seen.ip() == w.site.public(), "{seen}");
    ensure!(hears(&a, seen, &inside)?.is_some(), "no answer comes in");
    ensure!(hears(&a2, seen, &inside)?.is_none(), "anybody gets in");
    let (v6, inside6) = (
        socket(&w.a, &format!("[{}]:7000", w.a.under6()))?,
        socket(&w.host, "[::]:4101")?,
    );
    let address: SocketAddr = format!("[{}]:4101", w.host.under6()).parse()?;
    ensure!(hears(&v6, address, &inside6)?.is_none(), "IPv6 is open");
    let seen = hears(&inside6, v6.local_addr()?, &v6)?;
    ensure!(seen == Some(address), "{seen:?}");
    ensure!(
        hears(&v6, address, &inside6)?.is_some(),
        "no answer by IPv6"
    );
    Ok(())
}

fn where_udp_is_blocked_sockets_of_tcp_pass_the_nat(lab: &Lab) -> Result<()> {
    let w = world(
        lab,
        &Uplink {
            udp_blocked: true,
            ..Uplink::behind(Kind::port_restricted())
        },
    )?;
    let _server = w.a.ns().serve("tcp", w.a.under4(), 8000)?;
    let peer = w.host.ns().tcp(w.a.under4(), 8000, 300_000)?;
    ensure!(peer == w.site.public().to_string(), "seen as {peer}");
    let (a, inside) = (
        socket(&w.a, "203.0.113.1:7000")?,
        socket(&w.host, "0.0.0.0:4100")?,
    );
    ensure!(hears(&inside, a.local_addr()?, &a)?.is_none());
    Ok(())
}

fn lifetimes_ports_and_reboots_are_seen_by_sockets(lab: &Lab) -> Result<()> {
    let kind = Kind {
        ports: Ports::Sequential(3),
        mapping: Dependence::AddressAndPort,
        idle: Duration::from_secs(1),
        ..Kind::symmetric()
    };
    let w = world(lab, &Uplink::behind(kind))?;
    let (a, b, inside) = (
        socket(&w.a, "203.0.113.1:7000")?,
        socket(&w.b, "203.0.113.2:7000")?,
        socket(&w.host, "0.0.0.0:4100")?,
    );
    let first = hears(&inside, a.local_addr()?, &a)?.context("a")?;
    let second = hears(&inside, b.local_addr()?, &b)?.context("b")?;
    ensure!(second.port() == first.port() + 3, "{first}, {second}");
    until("the idle mapping ends", SOON, || {
        Ok(w.site.inner().mappings() == 0)
    })?;
    ensure!(hears(&a, first, &inside)?.is_none(), "an old mapping");
    w.become_kind(&Kind::full_cone())?;
    let before = hears(&inside, a.local_addr()?, &a)?.context("a")?;
    w.site.reboot(120)?;
    ensure!(hears(&a, before, &inside)?.is_none(), "the old address");
    let after = hears(&inside, a.local_addr()?, &a)?.context("a")?;
    ensure!(after.ip().to_string() == "203.0.113.120", "{after}");
    ensure!(hears(&a, after, &inside)?.is_some(), "no answer comes in");
    Ok(())
}

fn the_line_of_a_site_delays_loses_and_drops_what_is_large(lab: &Lab) -> Result<()> {
    let w = world(lab, &Uplink::behind(Kind::full_cone()))?;
    let (a, inside) = (
        socket(&w.a, "203.0.113.1:7000")?,
        socket(&w.host, "0.0.0.0:4100")?,
    );
    let to = a.local_addr()?;
    a.set_read_timeout(Some(Duration::from_secs(2)))?;
    let delay = Duration::from_millis(40);
    w.site.weather(&Weather {
        delay,
        larger_than: Some(1200),
        ..Weather::default()
    });
    let mut buffer = [0; 2048];
    let start = Instant::now();
    inside.send_to(&[0; 1000], to)?;
    a.recv_from(&mut buffer)?;
    ensure!(start.elapsed() >= delay, "{:?}", start.elapsed());
    a.set_read_timeout(Some(SHORT))?;
    inside.send_to(&[0; 1300], to)?;
    ensure!(a.recv_from(&mut buffer).is_err(), "a large one passed");
    w.site.weather(&Weather {
        loss: 100_000,
        ..Weather::default()
    });
    ensure!(hears(&inside, to, &a)?.is_none(), "nothing was lost");
    w.site.weather(&Weather::default());
    ensure!(hears(&inside, to, &a)?.is_some(), "all was lost");
    Ok(())
}
