//! ufw lets our links through, and has its rules back when we stop.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::firewall::{scene_on, stop};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON};
use crate::long;

pub const CASES: &[Case] = &[
    long!(
        ufw_lets_our_links_through_and_is_left_as_it_was,
        "ufw",
        "iptables",
        "ip6tables"
    ),
    long!(
        a_stop_that_has_no_time_for_ufw_says_what_is_left,
        "ufw",
        "iptables",
        "ip6tables"
    ),
];

/// A ufw that is on in the namespace of a host, with files of its own: `ip netns exec` puts them in the place of the
/// machine's.
pub struct Ufw(std::path::PathBuf);

impl Ufw {
    pub fn enable(host: &Host) -> Result<Ufw> {
        let own = Ufw(std::path::Path::new("/etc/netns").join(host.ns().name()));
        std::fs::create_dir_all(&own.0)?;
        for part in ["ufw", "default"] {
            crate::lab::sh(
                "cp",
                &[
                    "-a",
                    &format!("/etc/{part}"),
                    &own.0.join(part).to_string_lossy(),
                ],
            )?;
        }
        // Sysctls are not what is tested here, and the lab compares them.
        let file = own.0.join("default/ufw");
        std::fs::write(
            &file,
            std::fs::read_to_string(&file)? + "\nIPT_SYSCTL=\nDEFAULT_FORWARD_POLICY=\"DROP\"\n",
        )?;
        host.ns().ok(&["ufw", "--force", "reset"])?;
        host.ns().ok(&["ufw", "allow", "4100"])?;
        host.ns().ok(&["ufw", "--force", "enable"])?;
        Ok(own)
    }

    /// The rules that it keeps.
    pub fn rules(&self) -> Result<String> {
        let read = |name: &str| std::fs::read_to_string(self.0.join("ufw").join(name));
        Ok(read("user.rules")? + &read("user6.rules")?)
    }

    /// Its tables go, so that the host is as it was.
    pub fn gone(host: &Host) -> Result<()> {
        for family in ["ip", "ip6"] {
            host.ns()
                .ok(&["nft", "delete", "table", family, "filter"])?;
        }
        Ok(())
    }
}

impl Drop for Ufw {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub const WITH_UFW: &str = "[firewall]\nintegrate = [\"ufw\"]\n";

fn ufw_lets_our_links_through_and_is_left_as_it_was(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let ufw = Ufw::enable(&a)?;
    let theirs = ufw.rules()?;
    let s = scene_on(lab, Rc::clone(&a), WITH_UFW)?;
    s.all_pass(SOON)?;
    let (own4, _) = s.a.overlay("lab")?;
    ensure!(
        s.one.dig(&own4, &["db.lab.internal", "A"])?.status == "NOERROR",
        "names are answered"
    );
    ensure!(
        ufw.rules()?.matches("bwv+").count() >= 6 && ufw.rules()?.contains("bw-lab"),
        "{}",
        ufw.rules()?
    );
    a.ns().ok(&["ufw", "reload"])?;
    s.all_pass(Duration::from_secs(6))?;
    s.clears()?;
    // Gone at stop, which keeps its time: on a busy machine by leaving the rest to cleanup. After a kill, all by cleanup.
    let state = s.a.state().to_string_lossy().into_owned();
    if stop(&s.a)? != 0 {
        s.a.ok(&["cleanup", "--state-dir", &state])?;
    }
    ensure!(
        ufw.rules()? == theirs && !s.rules()?.contains("bw"),
        "{}{}",
        ufw.rules()?,
        s.rules()?
    );
    s.a.start()?;
    s.all_pass(SOON)?;
    s.a.kill9()?;
    let done = s.a.ok(&["cleanup", "--state-dir", &state])?;
    ensure!(
        done.contains("removed ufw's rules for bw-lab") && ufw.rules()? == theirs,
        "{done}\n{}",
        ufw.rules()?
    );
    ensure!(!s.rules()?.contains("bw"), "{}", s.rules()?);
    Ufw::gone(&a)?;
    drop(s.servers);
    Ok(())
}

fn a_stop_that_has_no_time_for_ufw_says_what_is_left(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let ufw = Ufw::enable(&a)?;
    let theirs = ufw.rules()?;
    // The real one, on a machine that is busy once the file is there.
    let (bin, busy) = (a.dir().join("bin"), a.dir().join("busy"));
    std::fs::create_dir(&bin)?;
    let slow = format!(
        "#!/bin/sh\n[ -e {} ] && sleep 1.2\nexec /usr/sbin/ufw \"$@\"\n",
        busy.display()
    );
    std::fs::write(bin.join("ufw"), slow)?;
    crate::lab::sh("chmod", &["755", &bin.join("ufw").to_string_lossy()])?;
    a.set_env(
        "PATH",
        &format!(
            "{}:{}",
            bin.display(),
            std::env::var("PATH").unwrap_or_default()
        ),
    );
    let s = scene_on(lab, Rc::clone(&a), WITH_UFW)?;
    s.all_pass(SOON)?;
    std::fs::write(&busy, "")?;
    ensure!(
        stop(&s.a)? == 1,
        "there was no time for everything: {}",
        s.a.log_tail(4)
    );
    let log = s.a.log_tail(4);
    let state = s.a.state().to_string_lossy().into_owned();
    ensure!(
        log.contains("E-NOT-REMOVED") && log.contains("there was no time left"),
        "{log}"
    );
    ensure!(
        log.contains(&format!("try:  byway cleanup --state-dir {state}")),
        "{log}"
    );
    // Everything else is gone: our own table judges no more, and there is no link of ours.
    ensure!(
        !a.ns().ruleset()?.contains("table inet byway_"),
        "{}",
        a.ns().ruleset()?
    );
    ensure!(!a.ns().ip(&["-o", "link"])?.contains("bw-lab"));
    let done = s.a.ok(&["cleanup", "--state-dir", &state])?;
    ensure!(
        done.contains("removed ufw's rules for") && ufw.rules()? == theirs,
        "{done}\n{}",
        ufw.rules()?
    );
    Ufw::gone(&a)?;
    drop(s.servers);
    Ok(())
}
