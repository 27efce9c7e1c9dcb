//! Hosts that share no wire: an Internet that routes, with hosts of public addresses and with sites behind NATs.
//!
//! The Internet is one namespace that forwards: no multicast and no link-local address passes it. A public host has
//! `203.0.113.N` and `2001:db8:0:N::1`. A site is a namespace `r-NAME` with a local network `192.168.N.0/24` on a bridge, where
//! it is the router; all its packets pass a [`Pipe`] with the NATs, whose other end stands in the Internet and has the address
//! `203.0.113.100+N`. A site of IPv6 has the network `2001:db8:N::/64`.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::MutexGuard;

use anyhow::{Context, Result};

use super::nat::pipe::{End, Inner, Pipe};
use super::nat::site::Firewall;
use super::nat::{self, Kind, Nat, Weather};
use super::{Host, Lab, Netns};

const GATEWAY: &str = "203.0.113.254";

/// What a site is behind.
#[derive(Debug, Clone, Default)]
pub struct Uplink {
    /// NATs from the inside to the outside; without any the site has no IPv4.
    pub nats: Vec<Kind>,
    /// Whether it has IPv6, behind a stateful firewall.
    pub six: bool,
    /// Whether UDP passes nowhere.
    pub udp_blocked: bool,
    /// Whether there is no NAT and no firewall, but a line whose weather can be changed: its one host has the public address.
    pub open: bool,
}

impl Uplink {
    /// IPv4 behind one NAT.
    pub fn behind(kind: Kind) -> Uplink {
        Uplink {
            nats: vec![kind],
            ..Uplink::default()
        }
    }

    /// A router for one public host.
    pub fn open() -> Uplink {
        Uplink {
            open: true,
            ..Uplink::default()
        }
    }
}

/// The Internet of one lab.
pub struct Internet<'a> {
    lab: &'a Lab,
    space: Netns,
}

/// A local network with its way out.
pub struct Site {
    number: u8,
    router: Netns,
    space: Netns,
    device: String,
    pipe: Pipe,
    hosts: std::cell::Cell<u8>,
    six: bool,
    four: bool,
    open: bool,
}

/// Where `ip netns` keeps a namespace.
fn file(space: &Netns) -> PathBuf {
    PathBuf::from("/run/netns").join(space.name())
}

/// Lets a namespace forward, and answer nothing else's addresses.
pub(super) fn forwards(space: &Netns) -> Result<()> {
    space
        .ok(&[
            "sysctl",
            "-qw",
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
        ])
        .map(drop)
}

/// A cable from `link` of one namespace to `port` of another.
pub(super) fn cable(host: &Netns, link: &str, other: &Netns, port: &str) -> Result<()> {
    other.ip(&[
        "link",
        "add",
        port,
        "type",
        "veth",
        "peer",
        "name",
        link,
        "netns",
        host.name(),
    ])?;
    other.ip(&["link", "set", port, "up"]).map(drop)
}

impl Lab {
    /// An Internet without anybody.
    ///
    /// # Errors
    /// The kernel refuses one of the parts.
    pub fn internet(&self) -> Result<Internet<'_>> {
        let space = Netns::make(&format!("{}-inet", self.prefix))?;
        self.grounds.borrow_mut().push(space.clone());
        forwards(&space)?;
        space.ip(&["addr", "add", &format!("{GATEWAY}/32"), "dev", "lo"])?;
        Ok(Internet { lab: self, space })
    }
}

impl Internet<'_> {
    /// Its namespace, where every packet between two sites or hosts passes: those of a host at `p-NAME`, those of a site at
    /// `n-NAME`.
    pub fn space(&self) -> &Netns {
        &self.space
    }

    /// The lab that it is in.
    pub(super) fn lab(&self) -> &Lab {
        self.lab
    }

    /// A host with public addresses of both families, behind nothing.
    ///
    /// # Errors
    /// The kernel refuses one of the parts.
    pub fn host(&self, name: &str, number: u8) -> Result<Rc<Host>> {
        let ns = Netns::make(&format!("{}-{name}", self.lab.prefix))?;
        let port = format!("p-{name}");
        cable(&ns, "eth0", &self.space, &port)?;
        let (under4, under6) = (
            format!("203.0.113.{number}"),
            format!("2001:db8:0:{number:x}::1"),
        );
        self.space
            .ip(&["addr", "add", "fe80::1/64", "dev", &port, "nodad"])?;
        self.space
            .ip(&["route", "add", &format!("{under4}/32"), "dev", &port])?;
        let net6 = format!("2001:db8:0:{number:x}::/64");
        self.space
            .ip(&["-6", "route", "add", &net6, "dev", &port])?;
        ns.ip(&["addr", "add", &format!("{under4}/32"), "dev", "eth0"])?;
        ns.ip(&[
            "addr",
            "add",
            &format!("{under6}/64"),
            "dev",
            "eth0",
            "nodad",
        ])?;
        ns.ip(&["link", "set", "eth0", "up"])?;
        ns.ip(&["route", "add", &format!("{GATEWAY}/32"), "dev", "eth0"])?;
        ns.ip(&["route", "add", "default", "via", GATEWAY, "dev", "eth0"])?;
        ns.ip(&[
            "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0",
        ])?;
        self.lab.settle(name, ns, under4, under6)
    }

    /// Lets nothing pass between two sites; each still reaches everybody else.
    ///
    /// # Errors
    /// `nft` refuses it.
    pub fn part(&self, one: &Site, other: &Site) -> Result<()> {
        let (one, other) = (&one.device, &other.device);
        let file = self.lab.dir().join("part.nft");
        let rules = format!(
            "table inet part {{\n chain f {{\n  type filter hook forward priority 0; policy accept;\n  \
             iifname \"{one}\" oifname \"{other}\" counter drop\n  iifname \"{other}\" oifname \"{one}\" counter drop\n }}\n}}\n"
        );
        std::fs::write(&file, rules).context("write rules")?;
        self.space
            .ok(&["nft", "-f", &file.to_string_lossy()])
            .map(drop)
    }

    /// Packets stopped between them so far.
    ///
    /// # Errors
    /// Nobody is apart.
    pub fn parted(&self) -> Result<u64> {
        let text = self.space.ok(&["nft", "list", "table", "inet", "part"])?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let counts = words.windows(3).filter_map(|w| match w {
            ["counter", "packets", n] => n.parse::<u64>().ok(),
            _ => None,
        });
        Ok(counts.sum())
    }

    /// Lets everything pass again.
    ///
    /// # Errors
    /// Nobody was apart.
    pub fn heal(&self) -> Result<()> {
        self.space
            .ok(&["nft", "delete", "table", "inet", "part"])
            .map(drop)
    }

    /// A site behind this, with the number that its addresses bear. The seed is that of random ports.
    ///
    /// # Errors
    /// The kernel refuses one of the parts.
    pub fn site(&self, name: &str, number: u8, uplink: &Uplink) -> Result<Rc<Site>> {
        let router = Netns::make(&format!("{}-r-{name}", self.lab.prefix))?;
        self.lab.grounds.borrow_mut().push(router.clone());
        forwards(&router)?;
        let device = format!("n-{name}");
        let end = |space: &Netns, device: &str| End {
            space: file(space),
            device: device.to_owned(),
        };
        let pipe = Pipe::start(
            machine(number, uplink),
            end(&router, "wan"),
            end(&self.space, &device),
            u64::from(number),
        )?;
        let site = Rc::new(Site {
            number,
            router,
            space: self.space.clone(),
            device,
            pipe,
            hosts: std::cell::Cell::new(0),
            six: uplink.six,
            four: !uplink.nats.is_empty() || uplink.open,
            open: uplink.open,
        });
        self.lab.sites.borrow_mut().push(Rc::clone(&site));
        site.build()?;
        Ok(site)
    }

    /// Hosts of one name in sites of that name: `(name, uplink)` each, numbered from 1.
    ///
    /// # Errors
    /// As [`Internet::site`].
    pub fn behind(&self, name: &str, number: u8, uplink: &Uplink) -> Result<(Rc<Site>, Rc<Host>)> {
        let site = self.site(name, number, uplink)?;
        let host = site.host(self.lab, name)?;
        Ok((site, host))
    }
}

/// The machine of a site: its NATs have private addresses of 100.64.0.0/10 between them.
fn machine(number: u8, uplink: &Uplink) -> nat::Site {
    let last = uplink.nats.len();
    let nats = uplink.nats.iter().enumerate().map(|(place, kind)| {
        let address = if place + 1 == last {
            Ipv4Addr::new(203, 0, 113, 100 + number)
        } else {
            Ipv4Addr::new(100, 64 + place as u8, number, 2)
        };
        Nat::new(kind.clone(), address, u64::from(number) << 8 | place as u64)
    });
    let mut site = nat::Site::behind(nats.collect());
    site.six = uplink.six.then(Firewall::default);
    site.udp_blocked = uplink.udp_blocked;
    site.open = uplink.open;
    site
}

impl Site {
    fn build(&self) -> Result<()> {
        let (n, device) = (self.number, self.device.as_str());
        self.router.ip(&[
            "link",
            "add",
            "lan",
            "type",
            "bridge",
            "mcast_snooping",
            "0",
            "forward_delay",
            "0",
        ])?;
        for link in ["lan", "wan"] {
            self.router.ip(&["link", "set", link, "up"])?;
        }
        self.space.ip(&["link", "set", device, "up"])?;
        if self.four {
            let lan = format!("192.168.{n}.1/24");
            self.router.ip(&["addr", "add", &lan, "dev", "lan"])?;
            self.router.ip(&["route", "add", "default", "dev", "wan"])?;
            self.leads_here(self.public())?;
        }
        if self.six {
            self.router
                .ip(&["addr", "add", "fe80::1/64", "dev", "lan", "nodad"])?;
            let (lan, net) = (
                format!("2001:db8:{n:x}::1/64"),
                format!("2001:db8:{n:x}::/64"),
            );
            self.router
                .ip(&["addr", "add", &lan, "dev", "lan", "nodad"])?;
            self.router
                .ip(&["-6", "route", "add", "default", "dev", "wan"])?;
            self.space
                .ip(&["-6", "route", "add", &net, "dev", device])?;
        }
        Ok(())
    }

    fn leads_here(&self, address: Ipv4Addr) -> Result<()> {
        let route = format!("{address}/32");
        self.space
            .ip(&["route", "replace", &route, "dev", &self.device])
            .map(drop)
    }

    /// The address its hosts are seen by outside.
    pub fn public(&self) -> Ipv4Addr {
        let inner = self.pipe.inner();
        let last = inner.site.nats.last().map(Nat::address);
        last.unwrap_or(Ipv4Addr::new(203, 0, 113, 100 + self.number))
    }

    /// A further host on its local network.
    ///
    /// # Errors
    /// The kernel refuses one of the parts.
    pub fn host(&self, lab: &Lab, name: &str) -> Result<Rc<Host>> {
        let place = 2 + self.hosts.replace(self.hosts.get() + 1);
        let ns = Netns::make(&format!("{}-{name}", lab.prefix))?;
        let port = format!("p-{name}");
        cable(&ns, "eth0", &self.router, &port)?;
        self.router.ip(&["link", "set", &port, "master", "lan"])?;
        ns.ip(&["link", "set", "eth0", "up"])?;
        let n = self.number;
        let (under4, under6) = (
            format!("192.168.{n}.{place}"),
            format!("2001:db8:{n:x}::{place:x}"),
        );
        if self.open {
            let (public, gateway) = (self.public().to_string(), format!("192.168.{n}.1"));
            let host = format!("{public}/32");
            self.router.ip(&["route", "add", &host, "dev", "lan"])?;
            ns.ip(&["addr", "add", &host, "dev", "eth0"])?;
            ns.ip(&["route", "add", &gateway, "dev", "eth0"])?;
            ns.ip(&["route", "add", "default", "via", &gateway, "dev", "eth0"])?;
            return lab.settle(name, ns, public, under6);
        }
        if self.four {
            ns.ip(&["addr", "add", &format!("{under4}/24"), "dev", "eth0"])?;
            let gateway = format!("192.168.{n}.1");
            ns.ip(&["route", "add", "default", "via", &gateway])?;
        }
        if self.six {
            let address = format!("{under6}/64");
            ns.ip(&["addr", "add", &address, "dev", "eth0", "nodad"])?;
            ns.ip(&[
                "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0",
            ])?;
        }
        lab.settle(name, ns, under4, under6)
    }

    /// A second uplink `eth1`, down, for a host of another site; the gateway's address.
    ///
    /// # Errors
    /// The kernel refuses one of the parts, or the site has no IPv4.
    pub fn second_cable(&self, host: &Host) -> Result<String> {
        let port = format!("q-{}", host.name());
        let ns = host.ns();
        cable(ns, "eth1", &self.router, &port)?;
        self.router.ip(&["link", "set", &port, "master", "lan"])?;
        let n = self.number;
        let address = format!("192.168.{n}.200/24");
        ns.ip(&["addr", "add", &address, "dev", "eth1"])?;
        Ok(format!("192.168.{n}.1"))
    }

    /// Its router takes from the local network only what comes from an address of this network, as providers do.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn drops_forged(&self) -> Result<()> {
        let set = "net.ipv4.conf.lan.rp_filter=1";
        self.router.ok(&["sysctl", "-qw", set]).map(drop)
    }

    /// Its NATs and lines, to be looked at or changed; nothing passes while this is held.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.pipe.inner()
    }

    /// Another weather on its line, both ways.
    pub fn weather(&self, weather: &Weather) {
        self.pipe.weather(weather);
    }

    /// Its outer NAT begins anew: every mapping is forgotten, and its address is `203.0.113.NUMBER`.
    ///
    /// # Errors
    /// The kernel refuses the route, or there is no NAT.
    pub fn reboot(&self, number: u8) -> Result<()> {
        let (before, address) = (self.public(), Ipv4Addr::new(203, 0, 113, number));
        self.space.ip(&["route", "del", &format!("{before}/32")])?;
        self.leads_here(address)?;
        let mut inner = self.pipe.inner();
        let nat = inner.site.nats.last_mut().context("a site without a NAT")?;
        nat.reboot(address);
        Ok(())
    }
}
