//! A virtual machine with a kernel of its own: QEMU without hardware's help, Debian's cloud kernel, busybox.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lab::runner::{Case, Skip};
use crate::lab::{Host, Lab, SOON, text, until, v4};
use crate::resolvers::unpacked;
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(
        a_booted_guest_talks_with_a_workload_of_another_host,
        "qemu-system-x86_64",
        "busybox"
    ),
    long!(
        a_booted_guest_has_its_tap_by_vhost,
        "qemu-system-x86_64",
        "busybox"
    ),
    long!(
        a_booted_guest_has_its_tap_as_a_stream_without_rights,
        "qemu-system-x86_64",
        "busybox",
        "setpriv"
    ),
];

/// Where Debian's package has the modules of its kernel, which `scripts/deps` unpacks under this name.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// The modules of a virtio network card, in the order in which they need each other.
const MODULES: [&str; 8] = [
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/net/virtio_net",
];

/// The guest's first program. It serves a page, tells what it got and what it fetched, and waits to be ended.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in MODULES; do insmod /modules/$module.ko || echo "guest: no $module"; done
ip link set lo up; ip link set eth0 up
udhcpc -i eth0 -n -q -f -t 20 -T 1 -s /udhcpc -O mtu -O search
mkdir /www; echo "page of the guest" > /www/index.html; httpd -p 80 -h /www
# Not by busybox: a static program has no resolver of the C library.
page() { timeout 3 bash -c 'exec 3<>/dev/tcp/web/80 && printf "GET / HTTP/1.0\r\n\r\n" >&3 && tail -n 1 <&3'; }
n=0; until fetched=$(page); do
  n=$((n + 1)); [ $n -gt 20 ] && break; sleep 0.5
done
[ -n "$fetched" ] || { cat /etc/resolv.conf; ip addr; ip route; nslookup web; } 2>&1
echo "guest: fetched $fetched"
until ip -6 route | grep -q '^default'; do sleep 0.2; done
echo "guest: router $(ip -6 route | grep '^default')"
while :; do sleep 60; done
"#;

/// What the guest does with what it is told.
const TAKE: &str = r#"#!/bin/busybox sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface; ip link set $interface mtu $mtu
ip route add default via $router
echo "nameserver $dns" > /etc/resolv.conf; echo "search $search" >> /etc/resolv.conf
echo "guest: took $ip/$mask via $router mtu $mtu"
"#;

/// An archive as the kernel unpacks it into its first file system (cpio, `newc`).
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let (length, named) = (content.len(), name.len() + 1);
        write!(
            self.0,
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{length:08x}{:08x}{:08x}{:08x}{:08x}{named:08x}{:08x}{name}\0",
            0, 0, 0, 1, 0, 0, 0, 0, 0, 0
        )?;
        self.fill();
        self.0.extend(content);
        self.fill();
        Ok(())
    }

    fn fill(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

const DIRECTORY: u32 = 0o40755;
const PROGRAM: u32 = 0o100_755;

fn first_file_system(to: &Path) -> Result<()> {
    let mut archive = Archive(Vec::new());
    for directory in ["bin", "modules", "proc", "sys", "dev", "etc"] {
        archive.add(directory, DIRECTORY, &[])?;
    }
    let busybox = crate::lab::sh("sh", &["-c", "command -v busybox"])?;
    archive.add("bin/busybox", PROGRAM, &std::fs::read(busybox.trim())?)?;
    add_bash(&mut archive)?;
    let mut names = Vec::new();
    let modules = found("lib/modules", "")?.join("kernel");
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        let content = std::fs::read(modules.join(format!("{module}.ko")))?;
        archive.add(&format!("modules/{name}.ko"), PROGRAM, &content)?;
        names.push(name);
    }
    let init = INIT.replace("MODULES", &names.join(" "));
    archive.add("init", PROGRAM, init.as_bytes())?;
    archive.add("udhcpc", PROGRAM, TAKE.as_bytes())?;
    archive.add("TRAILER!!!", 0, &[])?;
    Ok(std::fs::write(to, archive.0)?)
}

/// This machine's shell with the libraries that it is linked with: a program that resolves names as most do.
fn add_bash(archive: &mut Archive) -> Result<()> {
    let linked = crate::lab::sh("ldd", &["/bin/bash"])?;
    let libraries = linked.split_whitespace().filter(|w| w.starts_with('/'));
    let mut made = BTreeSet::from(["bin".to_owned()]);
    for path in libraries.chain(["/bin/bash"]) {
        let name = path.trim_start_matches('/');
        let above = Path::new(name).ancestors().skip(1);
        let above: Vec<String> = above.map(|dir| dir.to_string_lossy().into()).collect();
        for dir in above.into_iter().rev().filter(|dir| !dir.is_empty()) {
            if made.insert(dir.clone()) {
                archive.add(&dir, DIRECTORY, &[])?;
            }
        }
        archive.add(name, PROGRAM, &std::fs::read(path)?)?;
    }
    Ok(())
}

/// The first file of a directory of the package whose name begins so.
fn found(directory: &str, begins: &str) -> Result<PathBuf> {
    let directory = unpacked(PACKAGE, directory)?;
    for entry in std::fs::read_dir(&directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(begins) {
            return Ok(path);
        }
    }
    bail!("no {begins} in {}", directory.display())
}

/// A running virtual machine; it ends when dropped.
struct Machine {
    program: Child,
    console: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

impl Machine {
    /// Boots one with a network card of these words, in the namespace of a host.
    fn boot(lab: &Lab, host: &Host, under: &[&str], netdev: &str, mac: &str) -> Result<Machine> {
        let (console, files) = (lab.dir().join("console"), lab.dir().join("initramfs"));
        first_file_system(&files)?;
        let kernel = found("boot", "vmlinuz-")?;
        let (kernel, files) = (kernel.to_string_lossy(), files.to_string_lossy());
        let card = format!("virtio-net-pci,netdev=n0,mac={mac},romfile=");
        let words = [
            "qemu-system-x86_64",
            "-M",
            "q35",
            "-accel",
            "tcg",
            "-m",
            "192",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
            "-kernel",
            &kernel,
            "-initrd",
            &files,
            "-append",
            "console=ttyS0 quiet panic=1",
            "-netdev",
            netdev,
            "-device",
            &card,
        ];
        let program = host
            .ns()
            .command(&[under, &words].concat())
            .stdin(Stdio::null())
            .stdout(File::create(&console)?)
            .spawn()?;
        Ok(Machine { program, console })
    }

    /// Waits until the guest has said a line, and gives the rest of it.
    fn says(&self, begins: &str) -> Result<String> {
        let mut rest = String::new();
        let read = || -> Result<String> {
            Ok(String::from_utf8_lossy(&std::fs::read(&self.console)?).into_owned())
        };
        until(begins, Duration::from_secs(60), || {
            let said = read()?;
            let line = said.lines().find_map(|line| line.strip_prefix(begins));
            line.into_iter()
                .for_each(|line| rest = line.trim().to_owned());
            Ok(line.is_some())
        })
        .with_context(|| read().unwrap_or_default())?;
        Ok(rest)
    }
}

fn a_booted_guest_talks_with_a_workload_of_another_host(lab: &Lab) -> Result<()> {
    let open = |at: &Value| {
        let tap = text(at, "interface")?;
        Ok(format!("tap,id=n0,ifname={tap},script=no,downscript=no"))
    };
    talks_both_ways(lab, &[], open, Restart::Survived)
}

fn a_booted_guest_has_its_tap_by_vhost(lab: &Lab) -> Result<()> {
    if !Path::new("/dev/vhost-net").exists() {
        return Err(Skip("there is no /dev/vhost-net here".to_owned()).into());
    }
    let open = |at: &Value| {
        let tap = text(at, "interface")?;
        Ok(format!(
            "tap,id=n0,ifname={tap},script=no,downscript=no,vhost=on"
        ))
    };
    talks_both_ways(lab, &[], open, Restart::Survived)
}

/// Whether the guest's link is to outlive the daemon.
#[derive(PartialEq, Eq)]
enum Restart {
    Survived,
    /// QEMU 7.2 does not ask for its stream again.
    Untried,
}

fn a_booted_guest_has_its_tap_as_a_stream_without_rights(lab: &Lab) -> Result<()> {
    let open = |at: &Value| {
        let socket = text(at, "socket")?;
        // Who is not its owner is shown out.
        let look = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(5); \
            s.connect(sys.argv[1]); sys.exit(len(s.recv(1)))";
        let as_another = ["--reuid=4000001", "--regid=4000001", "--clear-groups"];
        let words = [&as_another[..], &["/usr/bin/python3", "-c", look, &socket]].concat();
        crate::lab::sh("setpriv", &words)?;
        let path = format!("addr.type=unix,addr.path={socket}");
        Ok(format!("stream,id=n0,server=off,{path}"))
    };
    // It is the TAP's owner and may nothing else: no capability is left.
    let bare = [
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--no-new-privs",
    ];
    talks_both_ways(lab, &bare, open, Restart::Untried)
}

/// Boots a guest whose network card is what `netdev` makes of the answer to `attach`, and has it and a workload of another
/// host talk. QEMU is started behind the words of `under`.
fn talks_both_ways(
    lab: &Lab,
    under: &[&str],
    netdev: impl Fn(&Value) -> Result<String>,
    restart: Restart,
) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let web = lab.workload("web")?;
    b.attach(&web, "lab", "web")?;
    let pages = lab.dir().join("pages");
    std::fs::create_dir(&pages)?;
    std::fs::write(pages.join("index.html"), "page of the workload\n")?;
    let pages = pages.to_string_lossy();
    let words = ["busybox", "httpd", "-f", "-p", "80", "-h", &pages];
    let _served = Ended(web.command(&words).spawn()?);
    let at = a.json(&["attach", "tap", "vm", "--subnet", "lab"])?;
    let begun = Instant::now();
    let machine = Machine::boot(lab, a, under, &netdev(&at)?, &text(&at, "mac")?)?;
    talks(&machine, a, &at)?;
    println!(
        "  the guest had the page {:?} after its start",
        begun.elapsed()
    );
    // The other way, by its address and by its name.
    for target in [v4(&at)?, "vm.lab.internal".to_owned()] {
        // It has asked for no address of IPv6.
        web.ok(&["ping", "-4", "-n", "-c", "1", "-W", "2", &target])?;
    }
    let fetch = format!(
        "exec 3<>/dev/tcp/{}/80 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && tail -n 1 <&3",
        v4(&at)?
    );
    let page = || web.ok(&["timeout", "5", "bash", "-c", &fetch]);
    ensure!(page()?.trim() == "page of the guest");
    if restart == Restart::Survived {
        a.terminate()?;
        a.start()?;
        until("the guest serves its page again", SOON, || {
            Ok(page().is_ok_and(|page| page.trim() == "page of the guest"))
        })?;
    }
    Ok(())
}

/// A program that ends when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The guest has what it was told, resolves `web` and fetched its page.
fn talks(machine: &Machine, a: &Host, at: &Value) -> Result<()> {
    let took = machine.says("guest: took ")?;
    let gateway = a.overlay("lab")?.0;
    let wanted = format!(" via {gateway} mtu {}", at["mtu"]);
    ensure!(
        took.starts_with(&v4(at)?) && took.ends_with(&wanted),
        "{took}"
    );
    let fetched = machine.says("guest: fetched ")?;
    ensure!(
        fetched == "page of the workload",
        "fetched {fetched:?}: {}",
        std::fs::read_to_string(&machine.console)?
    );
    let router = machine.says("guest: router ")?;
    ensure!(router.contains("fe80::"), "{router}");
    Ok(())
}
