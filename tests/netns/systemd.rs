//! The units as `packaging/install.sh` installs them, below a systemd that is the first process of a machine of its own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::booted::Machine;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, snapshot, text, until, v4};
use crate::long;
use crate::nspawn::Container;

pub const CASES: &[Case] = &[
    long!(
        the_units_work_below_systemd_in_whatever_order_they_restart,
        "curl",
        "dbus-daemon",
        "iptables-legacy"
    ),
    long!(a_machine_that_lost_its_power_is_the_same_afterwards),
    long!(networkmanagers_dnsmasq_asks_here_by_the_line_that_status_names),
];

/// How soon everything works again after a restart: systemd waits a second before it starts what was killed.
const BACK: Duration = Duration::from_secs(15);

/// The unit is started ten times a minute at most, which nobody but this test does.
const FORGET: &str = "systemctl reset-failed byway || true";

/// Starts the echo server of the tests at port 80 of a namespace of the machine, in a unit of its own.
const SERVE: &str = "systemd-run --quiet --unit=echo -p NetworkNamespacePath=/run/netns/web \
    python3 -B /src/tests/lab/sock.py serve tcp 0.0.0.0 80";

/// What Docker makes where its `iptables` is the one of before nftables.
const DOCKER: &str = "iptables-legacy -N DOCKER-USER && iptables-legacy -A DOCKER-USER -j RETURN && \
    iptables-legacy -A FORWARD -j DOCKER-USER && iptables-legacy -P FORWARD DROP";

/// `byway ARGS --json` on the machine.
fn json(inside: &Container, args: &[&str]) -> Result<Value> {
    let words = [&["byway", "--json"], args].concat();
    Ok(serde_json::from_str(&inside.ok(&words)?)?)
}

/// Installs byway as README says, by the commands that the script itself prints.
fn install(inside: &Container) -> Result<()> {
    let said = inside.ok(&["/src/packaging/install.sh", "--binary", "/program"])?;
    let next = said.lines().filter_map(|line| line.strip_prefix("next: "));
    let next: Vec<&str> = next
        .filter_map(|line| line.split("      (").next())
        .collect();
    ensure!(!next.is_empty(), "what comes next: {said}");
    for line in next {
        inside.sh(line)?;
    }
    until("the daemon answers", SOON, || {
        Ok(inside.run(&["byway", "status"])?.code == 0)
    })
    .map(drop)
}

/// What systemd knows of a unit.
fn property(inside: &Container, unit: &str, name: &str) -> Result<String> {
    let said = inside.ok(&["systemctl", "show", "--value", "-p", name, unit])?;
    Ok(said.trim().to_owned())
}

/// The subnet works in both directions, and so does all that the daemon or its helper does for it.
fn is_whole(machine: &Machine, b: &Host, db: &Netns) -> Result<()> {
    let inside = machine.inside()?;
    until("a map to it leads in", BACK, || {
        b.ns().tcp(machine.host.under4(), 88, 1000).map(|_| true)
    })?;
    db.reaches("web.lab.internal", BACK)?;
    until("it finds the other by name", BACK, || {
        inside.sh("ip netns exec web ping -c1 -W1 db").map(|_| true)
    })?;
    until("programs of the machine find it by name", BACK, || {
        inside.sh("getent ahosts db.lab.internal").map(|_| true)
    })?;
    // What only the helper can do.
    until("another is attached", BACK, || {
        inside
            .sh("byway attach netns two --subnet lab")
            .map(|_| true)
    })?;
    db.reaches("two.lab.internal", BACK)?;
    inside.sh("byway detach two").map(drop)
}

fn the_units_work_below_systemd_in_whatever_order_they_restart(lab: &Lab) -> Result<()> {
    let mut machine = Machine::new(lab, "a")?;
    machine.add("systemd-resolved")?;
    std::fs::create_dir_all(machine.path("etc/systemd"))?;
    std::fs::write(
        machine.path("etc/systemd/resolved.conf"),
        "[Resolve]\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\n",
    )?;
    let stub = "/run/systemd/resolve/stub-resolv.conf";
    std::os::unix::fs::symlink(stub, machine.path("etc/resolv.conf"))?;
    println!("    booted within {:?}", machine.boot()?);
    let b = lab.node("b")?;
    let inside = machine.inside()?;
    inside.ok(&["systemctl", "enable", "--now", "systemd-resolved"])?;
    // systemd sets sysctls of its own at the start.
    machine.host.rebase()?;
    let before = snapshot::of(machine.host.ns())?;
    install(inside)?;
    holds_what_the_unit_gives(inside)?;
    let created = json(inside, &["create", "lab"])?;
    b.json(&["join", &text(&created, "invite")?])?;
    inside.sh("ip netns add two; ip netns add web; ip -n web link set lo up")?;
    let at = json(inside, &["attach", "netns", "web", "--subnet", "lab"])?;
    inside.sh(SERVE)?;
    inside.sh("byway map add lab tcp 0.0.0.0:88 web:80")?;
    let db = lab.workload("db")?;
    b.attach(&db, "lab", "db")?;
    is_whole(&machine, &b, &db)?;
    // From here on nothing passes but by rules that only the helper may make.
    inside.sh(DOCKER)?;
    let theirs = inside.sh("iptables-legacy -S")?;
    is_whole(&machine, &b, &db)?;
    for order in [
        "restart byway",
        "restart byway-helper",
        "kill -s KILL byway",
        "kill -s KILL byway-helper",
        "kill -s KILL byway byway-helper",
        "stop byway-helper.socket byway-helper; systemctl restart byway",
        "stop byway; systemctl stop byway-helper.socket byway-helper; systemctl start byway",
        "stop byway-helper; systemctl reload byway",
        "restart systemd-resolved",
    ] {
        inside.sh(&format!("{FORGET}; systemctl {order}"))?;
        is_whole(&machine, &b, &db).with_context(|| order.to_owned())?;
        let now = json(inside, &["workload", "show", "web"])?;
        ensure!(v4(&now)? == v4(&at)?, "{order}: {now}");
    }
    // Nobody else changed what is byway's, also where nft has no words for protocols (/etc/protocols is not there).
    let log = inside.sh("journalctl --no-pager -u byway -u byway-helper")?;
    ensure!(!log.contains("another program"), "{log}");
    engines_are_answered_by_the_socket(inside)?;
    is_whole(&machine, &b, &db)?;
    nothing_is_left(&machine, &before)?;
    let left = inside.sh("iptables-legacy -S")?;
    ensure!(left == theirs, "{left}");
    inside.sh("iptables-legacy -P FORWARD ACCEPT").map(drop)
}

/// The daemon has its user and two capabilities, the helper is root with few, and no unit of ours has failed.
fn holds_what_the_unit_gives(inside: &Container) -> Result<()> {
    let pid = property(inside, "byway", "MainPID")?;
    let status = inside.ok(&["cat", &format!("/proc/{pid}/status")])?;
    let user = inside.sh("id -u byway")?;
    ensure!(
        status.contains(&format!("Uid:\t{}", user.trim())) && user.trim() != "0",
        "{status}"
    );
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
        ensure!(
            status.contains(&format!("{set}:\t0000000000001400")),
            "{status}"
        );
    }
    ensure!(status.contains("Seccomp:\t2"), "{status}");
    let failed = inside.ok(&["systemctl", "--failed", "--no-legend", "--plain"])?;
    ensure!(!failed.contains("byway"), "{failed}");
    // Where the group is not the asker's the socket does not answer.
    let refused = inside.run(&[
        "setpriv",
        "--reuid=12345",
        "--clear-groups",
        "byway",
        "status",
    ])?;
    ensure!(refused.code == 4, "{refused}");
    Ok(())
}

/// The plugin's socket is systemd's: it stays while the daemon is away, and starts it.
fn engines_are_answered_by_the_socket(inside: &Container) -> Result<()> {
    // systemd starts no socket of a service that runs, so the line that is told stops it first.
    let told = inside
        .run(&["byway", "integration", "install", "docker"])?
        .err;
    let line = told
        .lines()
        .find_map(|line| line.trim().strip_prefix("try:  "));
    let line = line.and_then(|line| line.split("      (").next());
    inside.sh(line.with_context(|| told.clone())?)?;
    inside.ok(&["byway", "integration", "install", "docker"])?;
    let activate = "curl -s -S -m 10 --unix-socket /run/docker/plugins/byway.sock -X POST http://plugin/Plugin.Activate";
    for before in [
        "true",
        "systemctl stop byway",
        "systemctl kill -s KILL byway",
    ] {
        inside.sh(&format!("{FORGET}; {before}"))?;
        let said = inside.sh(activate).with_context(|| before.to_owned())?;
        ensure!(said.contains("NetworkDriver"), "{before}: {said}");
    }
    inside.sh("systemctl disable --now byway-docker.socket")?;
    ensure!(!inside.sh("ls /run/docker/plugins")?.contains("byway"));
    Ok(())
}

/// After a stop the network is as it was before; after the uninstall nothing of ours runs or is enabled.
fn nothing_is_left(machine: &Machine, before: &snapshot::Snapshot) -> Result<()> {
    let inside = machine.inside()?;
    inside.sh("systemctl stop byway")?;
    ensure!(
        property(inside, "byway", "Result")? == "success",
        "{}",
        inside.sh("systemctl status byway || true")?
    );
    let spaces =
        inside.sh("ls -A /etc/netns; ip -n web -o link; ip -n two -o link; nft list ruleset")?;
    ensure!(
        !spaces.contains("byway") && !spaces.contains("web"),
        "{spaces}"
    );
    ensure!(!inside.sh("resolvectl domain")?.contains("lab.internal"));
    before.assert_same(&snapshot::of(machine.host.ns())?, "after the stop")?;
    inside.sh("systemctl start byway")?;
    let said = inside.ok(&["/src/packaging/install.sh", "--uninstall"])?;
    ensure!(
        said.contains("removed\n") && said.contains("left: /var/lib/byway "),
        "{said}"
    );
    before.assert_same(&snapshot::of(machine.host.ns())?, "after the uninstall")?;
    let units = inside.sh("systemctl list-units --all --no-legend --plain 'byway*'; ls /run")?;
    ensure!(!units.contains("byway"), "{units}");
    Ok(())
}

/// The examples of `examples/systemd`: a service in a namespace that a unit makes and attaches.
fn a_machine_that_lost_its_power_is_the_same_afterwards(lab: &Lab) -> Result<()> {
    let mut machine = Machine::new(lab, "a")?;
    machine.boot()?;
    let b = lab.node("b")?;
    machine.host.rebase()?;
    let inside = machine.inside()?;
    install(inside)?;
    let created = json(inside, &["create", "lab"])?;
    b.json(&["join", &text(&created, "invite")?])?;
    let db = lab.workload("db")?;
    b.attach(&db, "lab", "db")?;
    inside.sh("cp /src/examples/systemd/byway-netns@.service /src/examples/systemd/web.service /etc/systemd/system/")?;
    inside.sh("systemctl daemon-reload && systemctl enable --now web")?;
    inside.sh("byway map add lab tcp 0.0.0.0:88 web:80")?;
    let address = v4(&json(inside, &["workload", "show", "web"])?)?;
    let at = machine.host.under4().to_owned();
    let page = || -> Result<()> {
        for url in ["http://web.lab.internal/", &format!("http://{}:88/", at)] {
            let from = if url.contains("internal") {
                &db
            } else {
                b.ns()
            };
            until(
                &format!("a page comes from {url}"),
                Duration::from_secs(30),
                || {
                    from.ok(&["curl", "-s", "-m", "1", "-o", "/dev/null", url])
                        .map(|_| true)
                },
            )?;
        }
        Ok(())
    };
    page()?;
    for round in 0..2 {
        machine.cut()?;
        let took = machine.boot()?;
        let inside = machine.inside()?;
        page().with_context(|| format!("after loss {round}"))?;
        println!("    booted within {took:?}");
        ensure!(v4(&json(inside, &["workload", "show", "web"])?)? == address);
    }
    // A service that is stopped takes its namespace with it, and has it again.
    let inside = machine.inside()?;
    inside.sh("systemctl stop web")?;
    until("the namespace is gone", SOON, || {
        Ok(!inside.sh("ip netns list")?.contains("web"))
    })?;
    inside.sh("systemctl start web")?;
    page()?;
    inside.sh("systemctl stop web byway").map(drop)
}

/// The packages of NetworkManager and of what it runs.
const NETWORK_MANAGER: [&str; 7] = [
    "network-manager",
    "libnm0",
    "libndp0",
    "libteamdctl0",
    "libmm-glib0",
    "libbluetooth3",
    "dnsmasq-base",
];

/// Its own dnsmasq answers this machine's programs; the cable is left to the lab.
const WITH_DNSMASQ: &str = "[main]\nplugins=keyfile\ndns=dnsmasq\n[keyfile]\nunmanaged-devices=interface-name:eth0\n\
    [global-dns]\n[global-dns-domain-*]\nservers=192.0.2.1\n";

fn networkmanagers_dnsmasq_asks_here_by_the_line_that_status_names(lab: &Lab) -> Result<()> {
    let mut machine = Machine::new(lab, "a")?;
    for package in NETWORK_MANAGER {
        machine.add(package)?;
    }
    let config = machine.path("etc/NetworkManager");
    std::fs::create_dir_all(config.join("dnsmasq.d"))?;
    std::fs::write(config.join("NetworkManager.conf"), WITH_DNSMASQ)?;
    machine.boot()?;
    let inside = machine.inside()?;
    inside.ok(&["systemctl", "enable", "--now", "NetworkManager"])?;
    until("programs ask its dnsmasq", SOON, || {
        Ok(inside
            .sh("cat /etc/resolv.conf")?
            .contains("nameserver 127.0.0.1"))
    })?;
    machine.host.rebase()?;
    install(inside)?;
    let at = json(inside, &["create", "lab"])?;
    let resolver = inside.sh("cat /etc/resolv.conf; ls /etc/NetworkManager/dnsmasq.d")?;
    let problem = || -> Result<Value> {
        let status = json(inside, &["status"])?;
        let all = status["problems"].as_array().context("no problems")?;
        let ours = all.iter().find(|p| p["code"] == "E-HOST-NAMES");
        ours.cloned().with_context(|| status.to_string())
    };
    until("it says what to type", BACK, || problem().map(|_| true))?;
    let help = text(&problem()?, "help")?;
    let (line, _) = help
        .split_once("      (")
        .context("a command and a word about it")?;
    inside.sh(line)?;
    let own4 = v4(&json(inside, &["status"])?["subnets"][0])?;
    until("programs find names of the subnet", SOON, || {
        let found = inside.sh("getent ahosts a.lab.internal")?;
        ensure!(found.contains(&own4), "{found} {at}");
        Ok(true)
    })?;
    inside.sh("systemctl restart byway")?;
    until("status says that it works", BACK, || {
        let status = json(inside, &["status"])?;
        ensure!(status["host_names"]["state"] == "works", "{status}");
        Ok(true)
    })?;
    // Our links are none of NetworkManager's, and nothing of its was touched by us.
    let links = inside.sh("nmcli -t device")?;
    ensure!(links.contains("bw-lab:tun:unmanaged"), "{links}");
    inside.sh("systemctl kill -s KILL byway; systemctl stop byway; rm /etc/NetworkManager/dnsmasq.d/byway.conf")?;
    let after = inside.sh("cat /etc/resolv.conf; ls /etc/NetworkManager/dnsmasq.d")?;
    ensure!(after == resolver, "{after}");
    inside.sh("systemctl stop NetworkManager").map(drop)
}
