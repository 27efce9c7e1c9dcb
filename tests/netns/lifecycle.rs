//! From `create` to nothing left: up, down, leave, destroy, stop, and what `status` says meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fast;
use crate::lab::host::Host;
use crate::lab::runner::Case;
use crate::lab::{Lab, SOON, text, until};

pub const CASES: &[Case] = &[
    fast!(the_service_manager_is_told_when_it_can_be_used_and_that_it_lives),
    fast!(starts_alone_and_stops_without_a_trace),
    fast!(a_normal_stop_logs_no_error),
    fast!(down_takes_off_the_wire_and_up_brings_back),
    fast!(leave_gives_back_and_leaves_nothing),
    fast!(destroy_ends_it_for_every_member),
    fast!(status_has_the_fields_of_the_contract),
    fast!(the_log_has_one_line_for_each_happening_in_the_words_of_status),
    fast!(an_offline_member_is_shown_with_the_reason),
    fast!(byway_ping_tells_control_and_data_path),
    fast!(two_daemons_in_one_namespace),
];

fn starts_alone_and_stops_without_a_trace(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.assert_clean()
        .context("a daemon without a subnet touches nothing")?;
    let made = a.json(&["create", "lab"])?;
    ensure!(
        a.ns().pings(&crate::lab::v4(&made)?) && a.ns().pings(&crate::lab::v6(&made)?),
        "own addresses answer"
    );
    a.terminate()?;
    a.assert_clean()?;
    a.start()?;
    until("the same addresses are back", SOON, || {
        Ok(crate::lab::addresses(&a.status("lab")?)? == crate::lab::addresses(&made)?)
    })?;
    Ok(())
}

fn a_normal_stop_logs_no_error(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    a_path(&hosts[0], &hosts[1])?;
    for host in &hosts {
        host.terminate()?;
        let log = host.log_tail(usize::MAX);
        ensure!(log.contains("stopping") && !log.contains("ERROR"), "{log}");
    }
    Ok(())
}

fn a_path(from: &Host, to: &Host) -> Result<Duration> {
    from.ns().reaches(&to.overlay("lab")?.0, SOON)
}

fn down_takes_off_the_wire_and_up_brings_back(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (b4, b6) = b.overlay("lab")?;
    a.ns().reaches(&b4, SOON)?;
    b.ok(&["down", "lab"])?;
    until("nothing is left of a subnet that is down", SOON, || {
        Ok(b.assert_clean().is_ok())
    })
    .or_else(|_| b.assert_clean().map(|()| Duration::ZERO))?;
    let refused = b.fails(6, "E-SUBNET-DOWN", &["ping", "a"])?;
    ensure!(refused.err.contains("byway up lab"), "{refused}");
    let listed = b.ok(&["subnet", "ls"])?;
    ensure!(
        !listed.contains("bw-lab"),
        "there is no such link: {listed}"
    );
    a.ns().loses(&b4, SOON)?;
    b.ok(&["up", "lab"])?;
    a.ns().reaches(&b4, SOON)?;
    a.ns().reaches(&b6, SOON)?;
    ensure!(b.overlay("lab")? == (b4, b6), "the addresses are the same");
    Ok(())
}

fn leave_gives_back_and_leaves_nothing(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let web = lab.workload("web")?;
    b.attach(&web, "lab", "web")?;
    b.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    b.ok(&["leave", "lab"])?;
    b.assert_clean()?;
    until("the others know", SOON, || Ok(a.members("lab")? == ["a"]))?;
    b.ok(&["leave", "lab"]).context("said again it is exit 0")?;
    b.fails(5, "E-", &["leave", "nosuch"]).map(drop)
}

fn destroy_ends_it_for_every_member(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c"])?;
    let [a, b, c] = &hosts[..] else {
        unreachable!("three hosts were asked for")
    };
    let web = lab.workload("web")?;
    b.attach(&web, "lab", "web")?;
    let refused = b.byway(&["destroy", "lab"])?;
    ensure!(
        refused.code == 4 || refused.code == 7,
        "only the owner may: {refused}"
    );
    a.ok(&["destroy", "lab"])?;
    a.assert_clean()?;
    for member in [b, c] {
        until("the member has nothing left", SOON, || {
            Ok(member.assert_clean().is_ok())
        })
        .or_else(|_| member.assert_clean().map(|()| Duration::ZERO))?;
    }
    // Its members are told until they leave it, also after a restart.
    c.terminate()?;
    c.start()?;
    for member in [b, c] {
        let told = || member.ok(&["status"]);
        let ended = |told: &str| {
            told.contains("no subnet any more") && told.contains("owner of subnet lab ended it")
        };
        until("it is told", SOON, || Ok(ended(&told()?)))
            .with_context(|| told().unwrap_or_default())?;
        member.ok(&["leave", "lab"])?;
        ensure!(
            member.ok(&["status"])?.contains("no subnet yet"),
            "it was left"
        );
    }
    ensure!(
        a.ok(&["status"])?.contains("no subnet yet"),
        "who destroyed it knows"
    );
    a.ok(&["destroy", "lab"])
        .context("said again it is exit 0")?;
    a.terminate()?;
    a.start()?;
    a.assert_clean()
        .context("a destroyed subnet does not come back")
}

fn the_log_has_one_line_for_each_happening_in_the_words_of_status(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    a.ns().reaches(&b.overlay("lab")?.0, SOON)?;
    let log = || std::fs::read_to_string(a.dir().join("log")).context("read the log");
    let told = |end: &str| {
        anyhow::Ok(
            log()?
                .lines()
                .filter(|line| line.contains(" INFO ") && line.ends_with(end))
                .count(),
        )
    };
    let once = |end: &str| {
        until(
            &format!("the log says: {end}"),
            SOON,
            || Ok(told(end)? == 1),
        )
        .with_context(|| a.log_tail(40))
        .map(drop)
    };
    let (b4, b6) = b.overlay("lab")?;
    once("lab: created")?;
    once(&format!("lab: b admitted, {b4}  {b6}"))?;
    until(
        "the log says which path of datagrams status shows",
        SOON,
        || {
            let path = a.status("lab")?["peers"][0]["path"].clone();
            ensure!(path["carrier"] == "datagram", "{path}");
            let way = format!("direct udp {}", text(&path, "via")?);
            // The path before it is told as well where it lasted for a second.
            let moved = format!(": lab: b moved to {way}, was direct ");
            let came = told(&format!("lab: b connected, {way}"))?
                + log()?.lines().filter(|l| l.contains(&moved)).count();
            ensure!(came == 1, "{came} lines tell of {way}");
            Ok(true)
        },
    )
    .with_context(|| a.log_tail(40))?;
    let connected = log()?
        .lines()
        .filter(|line| line.contains("lab: b connected, direct "))
        .count();
    ensure!(
        connected == 1,
        "b connected {connected} times: {}",
        a.log_tail(40)
    );
    let web = lab.workload("web")?;
    let at = a.attach(&web, "lab", "web")?;
    once(&format!(
        "lab: web attached, {}  {}",
        crate::lab::v4(&at)?,
        crate::lab::v6(&at)?
    ))?;
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    once("lab: map tcp-8080 added, tcp 0.0.0.0:8080 to web:80")?;
    a.ok(&["map", "rm", "lab", "tcp-8080"])?;
    once("lab: map tcp-8080 removed, tcp 0.0.0.0:8080 to web:80")?;
    a.ok(&["detach", "web"])?;
    once("lab: web detached")?;
    a.ok(&["down", "lab"])?;
    once("lab: down")?;
    a.ok(&["up", "lab"])?;
    once("lab: up")?;
    a.ok(&["member", "remove", "lab", "b", "--yes"])?;
    once("lab: b removed")?;
    for line in log()?.lines() {
        ensure!(
            line.contains(" byway::") && !line.contains(" ERROR "),
            "no library has a word in it: {line}"
        );
    }
    Ok(())
}

fn an_offline_member_is_shown_with_the_reason(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c"])?;
    let [a, b, c] = &hosts[..] else {
        unreachable!("three hosts were asked for")
    };
    b.ns().reaches(&c.overlay("lab")?.0, SOON)?;
    // Both still reach the third.
    lab.unplug(c)?;
    let shown = |host: &crate::lab::host::Host| -> Result<bool> {
        let status = host.ok(&["status"])?;
        Ok(status.lines().any(|l| {
            l.starts_with("c ") && l.contains("offline since") && l.contains("(not reached at ")
        }))
    };
    for host in [a, b] {
        until("the reason is shown", Duration::from_secs(60), || {
            shown(host)
        })
        .with_context(|| a.log_tail(20))?;
    }
    let peer = a.json(&["peer", "show", "c"])?;
    ensure!(
        peer["path"]["reason"] == "not-reached" && !text(&peer["path"], "via")?.is_empty(),
        "{peer}"
    );
    lab.plug(c)
}

fn status_has_the_fields_of_the_contract(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    a.ns().reaches(&b.overlay("lab")?.0, SOON)?;
    until("the peer has a datagram path with an RTT", SOON, || {
        let peer = a.status("lab")?["peers"][0].clone();
        Ok(peer["path"]["carrier"] == "datagram" && peer["rtt_ms"].is_number())
    })?;
    let whole = a.json(&["status"])?;
    ensure!(
        whole["schema"] == "byway.status/1" && whole["problems"].is_array(),
        "{whole}"
    );
    let status = a.status("lab")?;
    let peer = &status["peers"][0];
    peer_has_its_fields(peer)?;
    for reason in [
        "source-not-leased",
        "not-member",
        "no-route",
        "filtered",
        "queue-full",
        "malformed",
    ] {
        ensure!(status["drops"][reason].is_u64(), "drops.{reason}: {status}");
    }
    let id = a.json(&["id"])?;
    for field in ["peer_id", "name", "fingerprint", "addresses"] {
        ensure!(!id[field].is_null(), "id lacks {field}: {id}");
    }
    ensure!(
        text(&id, "peer_id")? != text(&b.json(&["id"])?, "peer_id")?,
        "two state directories are two peers"
    );
    let show = a.json(&["subnet", "show", "lab"])?;
    for field in ["id", "name", "cidr4", "cidr6", "members", "leases"] {
        ensure!(!show[field].is_null(), "subnet show lacks {field}: {show}");
    }
    for level in ["live", "ready", "healthy"] {
        a.ok(&["status", "--check", level])?;
    }
    let text = a.ok(&["status"])?;
    ensure!(
        text.contains("subnet lab") && text.contains("direct udp "),
        "{text}"
    );
    metrics_have_their_names(a)?;
    lab.unplug(b)?;
    until(
        "an unplugged peer is offline",
        Duration::from_secs(40),
        || Ok(a.status("lab")?["peers"][0]["path"]["kind"] == "offline"),
    )?;
    lab.plug(b)
}

/// What `status` says of the peer `b`, whose path is direct and has an RTT.
fn peer_has_its_fields(peer: &Value) -> Result<()> {
    ensure!(
        peer["name"] == "b" && peer["path"]["kind"] == "direct",
        "{peer}"
    );
    ensure!(
        peer["path"]["transport"] == "udp" && text(&peer["path"], "via")?.ends_with(":4100"),
        "{peer}"
    );
    ensure!(
        peer["path"]["transport"] == "udp" && peer["path"]["mtu"].as_u64() >= Some(1280),
        "{peer}"
    );
    ensure!(
        peer["session"]["cipher"].is_string() && peer["session"]["keys"].as_u64() >= Some(1),
        "{peer}"
    );
    let moved = |carrier: &str| peer["carriers"][carrier]["tx_bytes"].as_u64().unwrap_or(0);
    ensure!(
        moved("datagram") + moved("stream") == peer["tx_bytes"].as_u64().unwrap_or(0),
        "{peer}"
    );
    for field in ["mtu", "tx_bytes", "rx_bytes"] {
        ensure!(
            peer[field].as_u64().is_some_and(|n| n > 0),
            "peer.{field} counts: {peer}"
        );
    }
    ensure!(peer["path"]["since"].is_u64(), "{peer}");
    Ok(())
}

fn metrics_have_their_names(a: &Host) -> Result<()> {
    let metrics = a.ok(&["metrics"])?;
    for name in [
        "byway_peer_connected{",
        "byway_peer_tx_bytes_total{",
        "byway_drops_total{",
        "byway_members{",
        "byway_carrier_bytes_total{",
        "byway_session_keys_total{",
        "byway_path_mtu_bytes{",
        "byway_port_dropped_total{",
        "byway_lan_messages_total{what=\"asked\"}",
        "byway_lan_dropped_total{reason=\"forged\"}",
        "byway_handshakes_lost_total{over=\"stream\",how=\"refused\"}",
        "byway_dns_total{outcome=\"answered\"}",
        "byway_service_requests_total{kind=\"clock\"}",
        "byway_service_inflight",
    ] {
        ensure!(metrics.contains(name), "metrics lack {name}: {metrics}");
    }
    Ok(())
}

fn byway_ping_tells_control_and_data_path(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    a.ns().reaches(&b.overlay("lab")?.0, SOON)?;
    for target in ["b", &b.overlay("lab")?.0, "b.lab"] {
        let ping = a.json(&["ping", target, "-c", "2"])?;
        ensure!(
            ping["received"] == 2 && ping["path"]["kind"] == "direct",
            "{ping}"
        );
    }
    a.fails(5, "E-", &["ping", "nosuch"]).map(drop)
}

/// Two daemons of one machine share its namespace and do not fight over rules, tables or links.
fn two_daemons_in_one_namespace(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let second = lab.dir().join("second");
    std::fs::create_dir(&second)?;
    let path = |name: &str| second.join(name).to_string_lossy().into_owned();
    let binary = crate::lab::binary().to_string_lossy().into_owned();
    let (state, socket) = (path("state"), path("sock"));
    let program = [
        &binary,
        "daemon",
        "--state-dir",
        &state,
        "--socket",
        &socket,
        "--listen",
        "/ip4/0.0.0.0/tcp/4200",
    ];
    let mut child = a
        .ns()
        .command(&program)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let outcome = (|| -> Result<()> {
        let call = |args: &[&str]| {
            a.ns()
                .run(&[&[binary.as_str(), "--socket", &socket], args].concat())
        };
        until("the second daemon answers", SOON, || {
            Ok(call(&["status"])?.code == 0)
        })?;
        let made = call(&["create", "two", "--json"])?;
        ensure!(made.code == 0, "{made}");
        let (mine, other) = (a.overlay("lab")?.0, crate::lab::v4(&made.value()?)?);
        ensure!(
            a.ns().pings(&mine) && a.ns().pings(&other),
            "both daemons' addresses answer"
        );
        let destroyed = call(&["destroy", "two"])?;
        ensure!(
            destroyed.code == 0 && a.ns().pings(&mine),
            "the end of one leaves the other alone: {destroyed}"
        );
        Ok(())
    })();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id())?),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    let code = crate::lab::netns::wait_end(&mut child);
    outcome?;
    ensure!(code? == 0, "the second daemon did not stop cleanly");
    Ok(())
}

/// What a service manager hears on its socket, one datagram after the other.
struct Manager(std::os::unix::net::UnixDatagram);

impl Manager {
    fn listen(host: &Host) -> Result<Manager> {
        let path = host.dir().join("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path)
            .context("bind a socket for notifications")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        host.set_env("NOTIFY_SOCKET", &path.to_string_lossy());
        Ok(Manager(socket))
    }

    /// The next message that holds this line.
    fn hears(&self, line: &str) -> Result<String> {
        let mut found = String::new();
        until(&format!("the service manager hears {line}"), SOON, || {
            let mut buffer = [0; 4096];
            match self.0.recv(&mut buffer) {
                Ok(length) => found = String::from_utf8_lossy(&buffer[..length]).into_owned(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            Ok(found.lines().any(|l| l.starts_with(line)))
        })?;
        Ok(found)
    }
}

fn the_service_manager_is_told_when_it_can_be_used_and_that_it_lives(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let manager = Manager::listen(&a)?;
    a.set_env("WATCHDOG_USEC", "2000000");
    a.start()?;
    manager.hears("READY=1")?;
    a.json(&["create", "lab"])?;
    manager.hears("STATUS=1 subnet, 0 members connected")?;
    // After a start with a subnet: its address can be bound the moment it says so.
    let own = a.overlay("lab")?.0;
    a.terminate()?;
    manager.hears("STOPPING=1")?;
    a.start_under(&[])?;
    manager.hears("READY=1")?;
    let address = a.ns().ok(&["ip", "-4", "-br", "addr", "show", "bw-lab"])?;
    ensure!(
        address.contains(&own),
        "ready without the address: {address}"
    );
    for _ in 0..3 {
        manager.hears("WATCHDOG=1")?;
    }
    let unit = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/systemd/byway.service"
    ))?;
    ensure!(
        unit.contains("Type=notify-reload") && unit.contains("WatchdogSec="),
        "the unit waits for none of it"
    );
    // A reload is SIGHUP, and over when READY=1 comes after RELOADING=1.
    let pid = nix::unistd::Pid::from_raw(a.pid()?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP)?;
    let told = manager.hears("RELOADING=1")?;
    ensure!(told.contains("MONOTONIC_USEC="), "{told}");
    let told = manager.hears("READY=1")?;
    ensure!(
        told.contains("STATUS=configuration read again; nothing changed"),
        "{told}"
    );
    // A stopped daemon feeds nobody.
    a.stopped(|| {
        while manager.0.recv(&mut [0; 4096]).is_ok() {}
        std::thread::sleep(Duration::from_secs(2));
        ensure!(
            manager.0.recv(&mut [0; 4096]).is_err(),
            "the watchdog of a daemon that stands still was fed"
        );
        Ok(())
    })
}
