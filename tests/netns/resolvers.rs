//! Resolvers of a host, for one host of the lab: systemd-resolved with a bus and a `/run` of its own, openresolv with dnsmasq, and
//! what they ask for all else. `scripts/deps` unpacks and does not install them, for their packages would rewrite
//! `/etc/resolv.conf`.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::rc::Rc;

use anyhow::Result;

use crate::lab::netns::wait_end;
use crate::lab::runner::Skip;
use crate::lab::{Host, SOON, until};

/// Answers every question for an A record with 192.0.2.10, and writes down the names.
const OUTSIDE: &str = "import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 53))
log = open(sys.argv[2], 'w')
while True:
    q, who = s.recvfrom(4096)
    labels, at = [], 12
    while q[at]:
        labels.append(q[at + 1:at + 1 + q[at]].decode('latin1'))
        at += 1 + q[at]
    print('.'.join(labels), file=log, flush=True)
    end = at + 5
    is_a = q[at + 1:at + 3] == b'\\0\\1'
    head = q[:2] + b'\\x81\\x80' + q[4:6] + (b'\\0\\1' if is_a else b'\\0\\0') + b'\\0\\0\\0\\0'
    record = b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\\xc0\\0\\2\\x0a' if is_a else b''
    s.sendto(head + q[12:end] + record, who)";

/// Gives a mount namespace the user that the package of resolved would have made. The bus refuses who is no user.
pub const USERS: &str = "for f in passwd group; do cp /etc/$f \"$1/$f.$$\"; done
grep -q ^systemd-resolve: /etc/passwd || {
echo systemd-resolve:x:64990:64990::/:/bin/false >>\"$1/passwd.$$\"; echo systemd-resolve:x:64990: >>\"$1/group.$$\"; }
chmod 644 \"$1/passwd.$$\" \"$1/group.$$\"
mount --bind \"$1/passwd.$$\" /etc/passwd; mount --bind \"$1/group.$$\" /etc/group
";

/// A file of a package as `scripts/deps test` has unpacked it.
pub fn unpacked(package: &str, path: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    );
    let file = target.join("unpacked").join(package).join(path);
    if !file.exists() {
        let why = format!("{path} of {package} is not unpacked here (scripts/deps test)");
        return Err(Skip(why).into());
    }
    Ok(file)
}

/// A bus, a systemd-resolved and a server outside, for one host; they end with it.
pub struct Resolved {
    host: Rc<Host>,
    bus: Child,
    resolved: Option<Child>,
    pub polkit: Option<Child>,
    outside: Child,
    asked: PathBuf,
}

impl Resolved {
    /// Makes `host` a machine whose programs ask systemd-resolved, which asks a server at `x` for all else.
    pub fn start(host: &Rc<Host>, x: &Host) -> Result<Resolved> {
        let program = unpacked("systemd-resolved", "lib/systemd/systemd-resolved")?;
        let etc = Path::new("/etc/netns").join(host.ns().name());
        std::fs::create_dir_all(etc.join("systemd"))?;
        std::fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.53\n")?;
        let config = format!(
            "[Resolve]\nDNS={}\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\n",
            x.under4()
        );
        std::fs::write(etc.join("systemd/resolved.conf"), config)?;
        let file = host.dir().join("bus.conf");
        std::fs::write(
            &file,
            format!(
                "<busconfig><type>system</type><listen>{}</listen><policy context=\"default\"><allow user=\"*\"/>\
                 <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
                address(host)
            ),
        )?;
        let config = format!("--config-file={}", file.display());
        let dir = host.dir().to_string_lossy().into_owned();
        let script = format!("{USERS}exec dbus-daemon \"$0\" --nofork --nopidfile");
        let bus = host
            .ns()
            .command(&["unshare", "-m", "sh", "-ec", &script, &config, &dir])
            .stderr(Stdio::null())
            .spawn()?;
        let asked = host.dir().join("asked");
        let log = asked.to_string_lossy().into_owned();
        let outside = x
            .ns()
            .command(&["python3", "-c", OUTSIDE, x.under4(), &log])
            .spawn()?;
        host.set_env("DBUS_SYSTEM_BUS_ADDRESS", &address(host));
        host.set_env("BYWAY_DNS_HOST", "auto");
        let mut all = Resolved {
            host: Rc::clone(host),
            bus,
            resolved: None,
            polkit: None,
            outside,
            asked,
        };
        until("the bus is there", SOON, || {
            Ok(host.dir().join("bus").exists())
        })?;
        all.run(&program)?;
        Ok(all)
    }

    /// Starts resolved with a `/run/systemd` of its own, and with the user that its package would have made.
    fn run(&mut self, program: &Path) -> Result<()> {
        let script = format!(
            "{USERS}mount -t tmpfs none /run/systemd && mkdir /run/systemd/resolve && \
             chown systemd-resolve:systemd-resolve /run/systemd/resolve && exec \"$0\""
        );
        let dir = self.host.dir().to_string_lossy().into_owned();
        let program = program.to_string_lossy().into_owned();
        let mut command = self
            .host
            .ns()
            .command(&["unshare", "-m", "sh", "-ec", &script, &program, &dir]);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", address(&self.host));
        self.resolved = Some(
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?,
        );
        until("resolved is on the bus", SOON, || {
            Ok(self.ctl(&["dns"]).is_ok())
        })
        .map(drop)
    }

    pub fn restart(&mut self) -> Result<()> {
        end(self.resolved.as_mut());
        self.run(&unpacked(
            "systemd-resolved",
            "lib/systemd/systemd-resolved",
        )?)
    }

    /// What `resolvectl` says.
    pub fn ctl(&self, words: &[&str]) -> Result<String> {
        let program = unpacked("systemd-resolved", "usr/bin/resolvectl")?;
        let (bus, program) = (
            format!("DBUS_SYSTEM_BUS_ADDRESS={}", address(&self.host)),
            program.to_string_lossy().into_owned(),
        );
        let base = ["env", &bus, &program, "--no-pager"];
        self.host.ns().ok(&[&base[..], words].concat())
    }

    /// The names that the server outside was asked for.
    pub fn outside(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.asked)?)
    }
}

impl Drop for Resolved {
    fn drop(&mut self) {
        for child in [self.resolved.as_mut(), self.polkit.as_mut()] {
            end(child);
        }
        for child in [&mut self.bus, &mut self.outside] {
            end(Some(child));
        }
        let etc = Path::new("/etc/netns").join(self.host.ns().name());
        let _ = std::fs::remove_dir_all(etc);
    }
}

fn end(child: Option<&mut Child>) {
    let Some(child) = child else { return };
    if let Ok(pid) = i32::try_from(child.id()) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
    if wait_end(child).is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

pub fn address(host: &Host) -> String {
    format!("unix:path={}", host.dir().join("bus").display())
}

/// openresolv in a directory of the host, and the dnsmasq that it starts; that ends with it.
pub struct Openresolv {
    host: Rc<Host>,
    pub dir: PathBuf,
    outside: Child,
}

impl Openresolv {
    pub fn start(host: &Rc<Host>, x: &Host) -> Result<Openresolv> {
        let dir = host.dir().join("openresolv");
        let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
        for name in ["bin", "lib", "etc"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        // The scripts as they are, but for their places.
        let places = [
            ("\"/etc\"/resolvconf.conf", at("etc/resolvconf.conf")),
            ("\"/etc/resolvconf.conf\"", at("etc/resolvconf.conf")),
            ("SYSCONFDIR=/etc", format!("SYSCONFDIR={}", at("etc"))),
            ("/run/resolvconf", at("run")),
            ("/lib/resolvconf", at("lib")),
            ("/sbin/resolvconf", at("bin/resolvconf")),
        ];
        for (from, to) in [
            ("sbin/resolvconf", "bin/resolvconf"),
            ("lib/resolvconf/dnsmasq", "lib/dnsmasq"),
            ("lib/resolvconf/libc", "lib/libc"),
        ] {
            let from = unpacked("openresolv", from)?;
            std::fs::copy(&from, dir.join(to))?;
            let mut text = std::fs::read_to_string(&from)?;
            for (place, own) in &places {
                text = text.replace(place, own);
            }
            std::fs::write(dir.join(to), text)?;
        }
        let dnsmasq = unpacked("dnsmasq-base", "usr/sbin/dnsmasq")?;
        let restart = format!(
            "if [ -s {pid} ]; then old=$(cat {pid}); kill $old; while kill -0 $old 2>/dev/null; do sleep 0.05; done; fi\n\
             exec {} --conf-file={} --resolv-file={} --pid-file={pid} --listen-address=127.0.0.1 --bind-interfaces \
             --user=root --no-hosts --cache-size=0\n",
            dnsmasq.display(),
            at("dnsmasq.conf"),
            at("upstream"),
            pid = at("dnsmasq.pid"),
        );
        std::fs::write(dir.join("restart"), restart)?;
        let config = format!(
            "name_servers=127.0.0.1\nresolv_conf={}\ndnsmasq_conf={}\ndnsmasq_resolv={}\ndnsmasq_restart='sh {}'\n",
            at("resolv.conf"),
            at("dnsmasq.conf"),
            at("upstream"),
            at("restart")
        );
        std::fs::write(dir.join("etc/resolvconf.conf"), config)?;
        let etc = Path::new("/etc/netns").join(host.ns().name());
        std::fs::create_dir_all(&etc)?;
        std::fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        let log = at("asked");
        let outside = x
            .ns()
            .command(&["python3", "-c", OUTSIDE, x.under4(), &log])
            .spawn()?;
        let path = std::env::var("PATH").unwrap_or_default();
        host.set_env("PATH", &format!("{}:{path}", at("bin")));
        host.set_env("DBUS_SYSTEM_BUS_ADDRESS", &address(host));
        host.set_env("BYWAY_DNS_HOST", "auto");
        let all = Openresolv {
            host: Rc::clone(host),
            dir: dir.clone(),
            outside,
        };
        let add = format!(
            "echo nameserver {} | {} -a eth0",
            x.under4(),
            at("bin/resolvconf")
        );
        host.ns().ok(&["sh", "-c", &add])?;
        Ok(all)
    }

    /// Every file that openresolv has written.
    pub fn files(&self) -> Result<String> {
        let dir = self.dir.to_string_lossy().into_owned();
        let script = "cd \"$0\" && find run -type f | sort && find run -type f | sort | xargs cat && cat dnsmasq.conf upstream resolv.conf";
        self.host.ns().ok(&["sh", "-c", script, &dir])
    }
}

impl Drop for Openresolv {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.dir.join("dnsmasq.pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        end(Some(&mut self.outside));
        let etc = Path::new("/etc/netns").join(self.host.ns().name());
        let _ = std::fs::remove_dir_all(etc);
    }
}
