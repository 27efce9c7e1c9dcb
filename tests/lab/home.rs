//! A router as homes have it: masquerading by the kernel's own NAT, perhaps IPv6 behind a firewall, and miniupnpd, which opens
//! ports by UPnP, NAT-PMP and PCP.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use super::internet::{Internet, cable, forwards};
use super::{Host, Lab, Netns, SOON, until};

/// The address of the Internet's routers.
const GATEWAY: &str = "203.0.113.254";

/// A router with a local network behind it.
pub struct Home {
    number: u8,
    router: Netns,
    dir: PathBuf,
    program: PathBuf,
    settings: std::cell::RefCell<String>,
    daemon: std::cell::RefCell<Option<Child>>,
    six: std::cell::Cell<bool>,
}

impl Internet<'_> {
    /// A router with the address `outside` and the network `192.168.NUMBER.0/24`. Nothing from outside passes that is no
    /// answer. `program` is miniupnpd; without [`Home::serve`] it does not run.
    ///
    /// # Errors
    /// The kernel refuses one of the parts.
    pub fn home(&self, name: &str, number: u8, outside: &str, program: PathBuf) -> Result<Home> {
        let lab = self.lab();
        let router = Netns::make(&format!("{}-r-{name}", lab.prefix))?;
        lab.grounds.borrow_mut().push(router.clone());
        forwards(&router)?;
        let port = format!("w-{name}");
        cable(&router, "wan", self.space(), &port)?;
        let host = format!("{outside}/32");
        self.space().ip(&["route", "add", &host, "dev", &port])?;
        router.ip(&["addr", "add", &host, "dev", "wan"])?;
        router.ip(&["link", "set", "wan", "up"])?;
        router.ip(&["route", "add", GATEWAY, "dev", "wan"])?;
        router.ip(&["route", "add", "default", "via", GATEWAY, "dev", "wan"])?;
        router.ip(&["link", "add", "lan", "type", "bridge", "forward_delay", "0"])?;
        router.ip(&["link", "set", "lan", "up"])?;
        let lan = format!("192.168.{number}.1/24");
        router.ip(&["addr", "add", &lan, "dev", "lan"])?;
        let dir = lab.dir().join(format!("r-{name}"));
        std::fs::create_dir(&dir).context("make the router's directory")?;
        let home = Home {
            number,
            router,
            dir,
            program,
            settings: std::cell::RefCell::default(),
            daemon: std::cell::RefCell::default(),
            six: std::cell::Cell::default(),
        };
        home.masquerade()?;
        Ok(home)
    }

    /// A router as [`Internet::home`] makes it, with the network `2001:db8:NUMBER::/64` beside: its firewall lets in of both
    /// families what answers.
    ///
    /// # Errors
    /// As there.
    pub fn home_of_both(
        &self,
        name: &str,
        number: u8,
        outside: &str,
        program: PathBuf,
    ) -> Result<Home> {
        let home = self.home(name, number, outside, program)?;
        let (space, router) = (self.space(), home.router());
        let port = format!("w-{name}");
        let near = |space: &Netns, address: &str, link: &str| {
            let words = ["addr", "add", address, "dev", link, "nodad"];
            space.ip(&words).map(drop)
        };
        near(space, "fe80::1/64", &port)?;
        near(router, "fe80::2/64", "wan")?;
        near(router, "fe80::1/64", "lan")?;
        near(router, &format!("2001:db8:{number:x}::1/64"), "lan")?;
        let net = format!("2001:db8:{number:x}::/64");
        let to = [
            "-6",
            "route",
            "add",
            net.as_str(),
            "via",
            "fe80::2",
            "dev",
            &port,
        ];
        space.ip(&to)?;
        router.ip(&[
            "-6", "route", "add", "default", "via", "fe80::1", "dev", "wan",
        ])?;
        home.six.set(true);
        Ok(home)
    }
}

impl Home {
    /// The router's namespace.
    pub fn router(&self) -> &Netns {
        &self.router
    }

    /// Loads the ruleset anew, as a router does that begins anew: every port that was opened is closed, and connections
    /// are forgotten.
    ///
    /// # Errors
    /// `nft` refuses it.
    pub fn masquerade(&self) -> Result<()> {
        // Another port for each destination: nobody comes in by a hole of the NAT itself.
        let rules = "flush ruleset
table inet filter {
 chain forward { type filter hook forward priority 0; policy drop;
  iifname \"lan\" accept
  ct state established,related accept
  jump miniupnpd
 }
 chain miniupnpd { }
 chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd; }
 chain postrouting { type nat hook postrouting priority 100; policy accept;
  jump postrouting_miniupnpd
  oifname \"wan\" ip saddr 192.168.0.0/16 masquerade fully-random
 }
 chain prerouting_miniupnpd { }
 chain postrouting_miniupnpd { }
}
";
        let file = self.dir.join("rules.nft");
        std::fs::write(&file, rules).context("write rules")?;
        self.router.ok(&["nft", "-f", &file.to_string_lossy()])?;
        // Without a connection known none is deleted: that is no failure.
        self.router.run(&["conntrack", "-F"]).map(drop)
    }

    /// A host on the local network.
    ///
    /// # Errors
    /// The kernel refuses one of the parts.
    pub fn host(&self, lab: &Lab, name: &str, place: u8) -> Result<Rc<Host>> {
        let ns = Netns::make(&format!("{}-{name}", lab.prefix))?;
        let port = format!("p-{name}");
        cable(&ns, "eth0", &self.router, &port)?;
        self.router.ip(&["link", "set", &port, "master", "lan"])?;
        let address = format!("192.168.{}.{place}", self.number);
        ns.ip(&["link", "set", "eth0", "up"])?;
        ns.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ns.ip(&["route", "add", "default", "via", &self.gateway()])?;
        if !self.six.get() {
            return lab.settle(name, ns, address, String::new());
        }
        let under6 = format!("2001:db8:{:x}::{place:x}", self.number);
        let on_link = format!("{under6}/64");
        ns.ip(&["addr", "add", &on_link, "dev", "eth0", "nodad"])?;
        ns.ip(&[
            "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0",
        ])?;
        lab.settle(name, ns, address, under6)
    }

    /// The router's address on its local network.
    pub fn gateway(&self) -> String {
        format!("192.168.{}.1", self.number)
    }

    /// A second uplink `eth1` for a host of another router, with a default route that the kernel prefers less; the host's
    /// address there.
    ///
    /// # Errors
    /// The kernel refuses one of the parts.
    pub fn second_cable(&self, host: &Host) -> Result<String> {
        let port = format!("q-{}", host.name());
        let ns = host.ns();
        cable(ns, "eth1", &self.router, &port)?;
        self.router.ip(&["link", "set", &port, "master", "lan"])?;
        let address = format!("192.168.{}.200", self.number);
        ns.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth1"])?;
        ns.ip(&["link", "set", "eth1", "up"])?;
        let gateway = self.gateway();
        ns.ip(&["route", "add", "default", "via", &gateway, "metric", "50"])?;
        Ok(address)
    }

    /// Has miniupnpd serve with these lines of its configuration, in place of those before.
    ///
    /// # Errors
    /// It does not start, or does not listen in time.
    pub fn serve(&self, settings: &str) -> Result<()> {
        self.stop();
        *self.settings.borrow_mut() = settings.to_owned();
        let file = self.dir.join("miniupnpd.conf");
        let common = "ext_ifname=wan\nlistening_ip=lan\nhttp_port=5000\nsecure_mode=yes\n\
                      system_uptime=yes\nuuid=00000000-0000-0000-0000-000000000000\nmin_lifetime=20\n\
                      upnp_table_name=filter\nupnp_nat_table_name=filter\nupnp_forward_chain=miniupnpd\n\
                      upnp_nat_chain=prerouting_miniupnpd\nupnp_nat_postrouting_chain=postrouting_miniupnpd\n";
        let natpmp = if settings.contains("enable_natpmp") {
            ""
        } else {
            "enable_natpmp=yes\n"
        };
        let rules = if settings.contains("deny ") {
            ""
        } else {
            "allow 1024-65535 192.168.0.0/16 1024-65535\n"
        };
        std::fs::write(
            &file,
            format!("{common}{natpmp}{settings}{rules}deny 0-65535 0.0.0.0/0 0-65535\n"),
        )
        .context("write the router's settings")?;
        let log = std::fs::File::create(self.dir.join("miniupnpd.log")).context("make a log")?;
        let pid = self.dir.join("pid");
        let words = [
            self.program.to_string_lossy().into_owned(),
            "-d".to_owned(),
            "-f".to_owned(),
            file.to_string_lossy().into_owned(),
            "-P".to_owned(),
            pid.to_string_lossy().into_owned(),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let child = self
            .router
            .command(&words)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .context("start miniupnpd")?;
        *self.daemon.borrow_mut() = Some(child);
        until("miniupnpd listens", SOON, || {
            let sockets = self.router.ok(&["ss", "-Hlnut"])?;
            ensure!(sockets.contains(":1900"), "{sockets}: {}", self.log());
            Ok(true)
        })
        .map(drop)
    }

    /// What miniupnpd says.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("miniupnpd.log")).unwrap_or_default()
    }

    /// Ends miniupnpd at once, without removing anything.
    pub fn stop(&self) {
        if let Some(mut child) = self.daemon.borrow_mut().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Begins anew: nothing that was opened is open, and the router says so to who asks.
    ///
    /// # Errors
    /// It does not come up again.
    pub fn reboot(&self) -> Result<()> {
        self.stop();
        self.masquerade()?;
        let settings = self.settings.borrow().clone();
        self.serve(&settings)
    }

    /// Where ports of the router lead: `udp 4100 to 192.168.1.2:4100`.
    ///
    /// # Errors
    /// `nft` does not list them.
    pub fn ports(&self) -> Result<Vec<String>> {
        let chain = [
            "nft",
            "-n",
            "list",
            "chain",
            "inet",
            "filter",
            "prerouting_miniupnpd",
        ];
        let listed = self.router.ok(&chain)?;
        let rules = listed.lines().filter(|line| line.contains("dnat"));
        let port = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = |word: &str| {
                let at = words.iter().position(|known| *known == word)?;
                words.get(at + 1).copied()
            };
            let proto = if line.contains(" 0x11 ") || line.contains(" udp ") {
                "udp"
            } else {
                "tcp"
            };
            format!(
                "{proto} {} to {}",
                after("dport").unwrap_or("?"),
                words.last().unwrap_or(&"?")
            )
        };
        let mut ports: Vec<String> = rules.map(port).collect();
        ports.sort();
        Ok(ports)
    }
}

impl Home {
    /// What the firewall lets in of IPv6 by pinholes: the number of their rules that name this address.
    ///
    /// # Errors
    /// `nft` does not list them.
    pub fn pinholes(&self, to: &str) -> Result<usize> {
        let chain = ["nft", "-n", "list", "chain", "inet", "filter", "miniupnpd"];
        let listed = self.router.ok(&chain)?;
        let bits: std::net::Ipv6Addr = to.parse().context("an IPv6 address")?;
        // miniupnpd compares bytes of the packet, which `nft` shows as such or as what they are.
        let raw = format!("0x{:032x}", bits.to_bits());
        let names = |line: &&str| line.contains(&raw) || line.contains(to);
        Ok(listed.lines().filter(names).count())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.stop();
    }
}
