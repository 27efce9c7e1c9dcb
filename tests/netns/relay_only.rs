//! A daemon that only relays: what it needs, which is nothing, and what it refuses.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::lab::internet::Uplink;
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, binary, text, until};
use crate::reach::{THREE, found, relay, relayed, two_with};
use crate::underlay::path;
use crate::{ci, fast};

pub const CASES: &[Case] = &[
    fast!(a_relay_needs_no_privilege_and_no_tun, "setpriv", "unshare"),
    fast!(a_relay_that_may_not_write_says_where, "setpriv"),
    ci!(a_relay_that_serves_no_longer_is_left_for_another),
];

/// A user that this machine knows nothing of.
const NOBODY: u32 = 4_000_000;

/// What a process of that user may do: nothing, now or later.
const POWERLESS: [&str; 8] = [
    "setpriv",
    "--reuid=4000000",
    "--regid=4000000",
    "--clear-groups",
    "--no-new-privs",
    "--inh-caps=-all",
    "--ambient-caps=-all",
    "--bounding-set=-all",
];

/// The binary where that user may read it.
fn copied(dir: &Path) -> Result<String> {
    let program = dir.join("byway");
    std::fs::copy(binary(), &program).context("copy the binary")?;
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    Ok(program.to_string_lossy().into_owned())
}

/// A directory of that user's on a host, and the arguments that run a relay there.
fn home(lab: &Lab, host: &Host) -> Result<Vec<String>> {
    for dir in [lab.dir(), host.dir()] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755))?;
    }
    let program = copied(host.dir())?;
    // The state and the socket have the places where the host's command line looks.
    std::fs::create_dir(host.state())?;
    chown(host.state(), Some(NOBODY), Some(NOBODY))?;
    let socket = host.state().join("s").to_string_lossy().into_owned();
    let state = host.state().to_string_lossy().into_owned();
    let words = [
        program.as_str(),
        "daemon",
        "--relay-only",
        "--state-dir",
        &state,
        "--socket",
        &socket,
    ];
    Ok(words.map(str::to_owned).into())
}

fn a_relay_needs_no_privilege_and_no_tun(lab: &Lab) -> Result<()> {
    let r = lab.host("r")?;
    let words = home(lab, &r)?;
    let socket = words.last().context("the socket")?.clone();
    // No device, no tool of the kernel's is in reach: an empty container has none.
    let bare = "mount -t tmpfs none /dev/net && PATH=/nowhere exec \"$@\"";
    let setpriv = r.ns().ok(&["sh", "-c", "command -v setpriv"])?;
    let mut all: Vec<&str> = vec!["unshare", "-m", "sh", "-c", bare, "sh", setpriv.trim()];
    all.extend(&POWERLESS[1..]);
    all.extend(words.iter().map(String::as_str));
    let log = std::fs::File::create(r.dir().join("log"))?;
    let mut relay = r
        .ns()
        .command(&all)
        .env("BYWAY_NODE_NAME", "r")
        .stderr(log)
        .spawn()?;
    let ask = |args: &[&str]| {
        r.ns()
            .run(&[&[&words[0], "--socket", &socket], args].concat())
    };
    let served = until("the relay answers", SOON, || {
        if let Some(status) = relay.try_wait()? {
            return Err(anyhow::anyhow!("it ended: {status}"));
        }
        Ok(ask(&["status"])?.code == 0)
    });
    let looked = served.and_then(|_| served_well(&r, &ask));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(relay.id())?),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    let code = crate::lab::netns::wait_end(&mut relay);
    looked.with_context(|| r.log_tail(20))?;
    ensure!(code? == 0, "it did not end with 0");
    r.assert_clean()
}

/// Looks at a relay that runs.
fn served_well(r: &Host, ask: &dyn Fn(&[&str]) -> Result<crate::lab::host::Answer>) -> Result<()> {
    r.assert_clean()
        .context("it changed something of its machine")?;
    let json = |args: &[&str]| ask(&[args, &["--json"]].concat())?.value();
    let status = json(&["status"])?;
    ensure!(
        status["problems"] == serde_json::json!([]) && status["subnets"] == serde_json::json!([]),
        "{status}"
    );
    let id = json(&["id"])?;
    let own = id["peer_id"].as_str().context("an ID")?;
    let addresses = id["addresses"].as_array().context("addresses")?;
    let wanted = [
        format!("/ip4/{}/udp/4100/quic-v1/p2p/{own}", r.under4()),
        format!("/ip4/{}/tcp/4100/p2p/{own}", r.under4()),
        format!("/ip6/{}/udp/4100/quic-v1/p2p/{own}", r.under6()),
    ];
    for address in wanted {
        ensure!(addresses.iter().any(|a| *a == address), "{address}: {id}");
    }
    let shown = ask(&["config", "show", "--effective", "--origin"])?.out;
    ensure!(
        shown.contains("node.relay_only = true   # --relay-only"),
        "{shown}"
    );
    for refused in [
        &["create", "lab"][..],
        &["join", "7q3km2wd9xra4ce8yn5t0vbz6g"],
        &["attach", "netns", "w", "--subnet", "lab"],
        &["map", "add", "lab", "tcp", "8080", "w:80"],
    ] {
        ask(refused)?.assert_error(1, "E-RELAY-ONLY")?;
    }
    ensure!(
        ask(&["metrics"])?
            .out
            .contains("\nbyway_relay_sessions 0\n"),
        "it counts nothing"
    );
    let off = ask(&["relay", "off"])?;
    ensure!(off.out == "relays for nobody\n", "{off}");
    let offer = ask(&["relay", "offer"])?;
    ensure!(
        offer.out == "offers to relay for anyone, at most 100 Mbit/s in all\n",
        "{offer}"
    );
    Ok(())
}

fn a_relay_that_may_not_write_says_where(lab: &Lab) -> Result<()> {
    let r = lab.host("r")?;
    let words = home(lab, &r)?;
    let closed = lab.dir().join("closed").join("deep");
    std::fs::create_dir_all(&closed)?;
    let closed = closed.to_string_lossy().into_owned();
    for (place, path) in [(4, closed.clone()), (6, format!("{closed}/s"))] {
        let mut words = words.clone();
        words[place].clone_from(&path);
        for check in [None, Some("--check")] {
            let mut all = POWERLESS.to_vec();
            all.extend(words.iter().map(String::as_str));
            all.extend(check);
            let answer = r.ns().run(&all)?;
            answer.assert_error(4, "E-PERMISSION")?;
            ensure!(
                answer.err.contains(&closed) && answer.err.contains("--state-dir DIR"),
                "{answer}"
            );
        }
    }
    r.assert_clean()
}

/// B05: what stands ends, and no place is given from now on: the owner of the relay has changed its mind.
fn a_relay_that_serves_no_longer_is_left_for_another(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let second = relay(&inet, "second", 2)?;
    let behind = Uplink::behind(Kind::symmetric());
    let two = two_with(&inet, &behind, &behind, &[&second])?;
    found(&two.a, &two.b)?;
    let inside = two.a.overlay("lab")?.0;
    two.b.ns().reaches(&inside, THREE)?;
    let before = text(&relayed(&two.b, "a", SOON)?, "via")?;
    let (left, other) = if before == two.relay.id {
        (&two.relay, &second)
    } else {
        (&second, &two.relay)
    };
    left.host.ok(&["relay", "off"])?;
    let begun = Instant::now();
    until("the other relay carries both ways", SOON, || {
        let (there, back) = (path(&two.b, "a")?, path(&two.a, "b")?);
        ensure!(
            [&there, &back]
                .iter()
                .all(|p| p["kind"] == "relay" && p["via"] == other.id.as_str()),
            "{there} {back}"
        );
        Ok(true)
    })?;
    println!("  the other relay after {:?}", begun.elapsed());
    two.b.ns().reaches(&inside, THREE)?;
    let sessions = left.host.json(&["relay", "ls"])?;
    ensure!(
        sessions["sessions"].as_array().is_some_and(Vec::is_empty),
        "{sessions}"
    );
    for host in [&two.a, &two.b] {
        until("no address leads there", SOON, || {
            Ok(!host.json(&["id"])?["addresses"]
                .to_string()
                .contains(&left.id))
        })?;
    }
    Ok(())
}
