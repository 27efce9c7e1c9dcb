//! firewalld lets our links through, also after it was reloaded.

use std::process::{Child, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::firewall::scene_on;
use crate::lab::netns::wait_end;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};

pub const CASES: &[Case] = &[fast!(
    firewalld_lets_our_links_through_across_reloads,
    "firewalld",
    "firewall-cmd",
    "dbus-daemon"
)];

/// A bus and a firewalld in the namespace of a host, which end with it.
pub struct Firewalld([Child; 2]);

impl Firewalld {
    pub fn start(host: &Host) -> Result<Firewalld> {
        let (bus, file) = (host.dir().join("bus"), host.dir().join("bus.conf"));
        let address = format!("unix:path={}", bus.display());
        std::fs::write(
            &file,
            format!(
                "<busconfig><type>system</type><listen>{address}</listen><policy context=\"default\">\
                 <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>"
            ),
        )?;
        let spawn = |program: &[&str]| {
            let mut command = host.ns().command(program);
            command
                .env("DBUS_SYSTEM_BUS_ADDRESS", &address)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.spawn().with_context(|| program.join(" "))
        };
        let config = format!("--config-file={}", file.display());
        let dbus = spawn(&["dbus-daemon", &config, "--nofork", "--nopidfile"])?;
        until("the bus is there", SOON, || Ok(bus.exists()))?;
        let firewalld = Firewalld([spawn(&["firewalld", "--nofork", "--nopid"])?, dbus]);
        host.set_env("DBUS_SYSTEM_BUS_ADDRESS", &address);
        until("firewalld runs", Duration::from_secs(20), || {
            Ok(Firewalld::cmd(host, "--state").is_ok())
        })?;
        Ok(firewalld)
    }

    fn cmd(host: &Host, word: &str) -> Result<String> {
        let bus = format!(
            "DBUS_SYSTEM_BUS_ADDRESS=unix:path={}",
            host.dir().join("bus").display()
        );
        host.ns().ok(&["env", &bus, "firewall-cmd", word])
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGTERM,
                );
            }
            if wait_end(child).is_err() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn firewalld_lets_our_links_through_across_reloads(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let firewalld = Firewalld::start(&a)?;
    let s = scene_on(lab, Rc::clone(&a), "")?;
    s.all_pass(SOON)?;
    let (own4, _) = s.a.overlay("lab")?;
    ensure!(
        s.one.dig(&own4, &["db.lab.internal", "A"])?.status == "NOERROR",
        "names are answered"
    );
    for word in ["--reload", "--complete-reload"] {
        Firewalld::cmd(&a, word)?;
        s.all_pass(Duration::from_secs(6)).with_context(|| word)?;
    }
    s.clears()?;
    // Gone at stop.
    let table = || a.ns().ok(&["nft", "list", "table", "inet", "firewalld"]);
    ensure!(table()?.contains("\"bwv*\"") && table()?.contains("\"bw-lab\""));
    s.a.terminate()?;
    ensure!(!table()?.contains("\"bw"), "{}", table()?);
    s.a.start()?;
    s.all_pass(SOON)?;
    s.a.kill9()?;
    let state = s.a.state().to_string_lossy().into_owned();
    let done = s.a.ok(&["cleanup", "--state-dir", &state])?;
    ensure!(
        done.contains("firewalld") && !table()?.contains("\"bw"),
        "{done}"
    );
    drop(firewalld);
    drop(s.servers);
    Ok(())
}
