//! Programs of a host resolve the names of its subnets by the host's own resolver.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::runner::{Case, Skip};
use crate::lab::{Host, Lab, SOON, until, v4, v6};
use crate::resolvers::{Openresolv, Resolved, USERS, address, unpacked};
use crate::surroundings::problems;

pub const CASES: &[Case] = &[
    fast!(programs_of_the_host_resolve_by_resolved, "dbus-daemon"),
    fast!(resolved_is_told_again_and_left_as_it_was, "dbus-daemon"),
    fast!(two_daemons_share_a_resolved, "dbus-daemon"),
    fast!(
        without_a_rule_resolved_refuses_and_status_says_so,
        "dbus-daemon",
        "setpriv"
    ),
    fast!(a_host_without_such_a_resolver_is_told_what_to_do),
    fast!(openresolv_has_dnsmasq_ask_here),
];

/// Time in which a change is known to the host's resolver: a View, the links, a call or two.
const KNOWN: Duration = Duration::from_secs(8);

/// What a program of the host finds at a name or an address, by the C library.
fn finds(host: &Host, asked: &str) -> Result<String> {
    Ok(host.ns().run(&["getent", "ahosts", asked])?.out)
}

/// Waits until the C library leads from `asked` to `found`.
fn leads(host: &Host, asked: &str, found: &str, limit: Duration) -> Result<Duration> {
    until(&format!("{asked} leads to {found}"), limit, || {
        let out = finds(host, asked)?;
        ensure!(
            out.lines()
                .any(|l| l.split_whitespace().next() == Some(found)),
            "{out}"
        );
        Ok(true)
    })
}

/// Waits until `status` says of the host's resolver what is wanted.
fn says(host: &Host, state: &str) -> Result<Duration> {
    until(&format!("the host's names are {state}"), KNOWN, || {
        let status = host.json(&["status"])?;
        ensure!(status["host_names"]["state"] == state, "{status}");
        Ok(true)
    })
}

fn programs_of_the_host_resolve_by_resolved(lab: &Lab) -> Result<()> {
    let (a, x) = (lab.host("a")?, lab.host("x")?);
    let resolved = Resolved::start(&a, &x)?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let took = says(&a, "works")?;
    println!(
        "    resolves {} ms after the subnet was made",
        took.as_millis()
    );
    ensure!(
        a.ok(&["status"])?
            .contains("resolve them by systemd-resolved"),
        "{}",
        a.ok(&["status"])?
    );
    let web = lab.workload("web")?;
    let at = a.attach(&web, "lab", "web")?;
    let (web4, web6) = (v4(&at)?, v6(&at)?);
    let (own4, _) = a.overlay("lab")?;
    leads(&a, "web.lab.internal", &web4, SOON)?;
    leads(&a, "web.lab.internal", &web6, SOON)?;
    leads(&a, "a.lab.internal", &own4, SOON)?;
    // Added names have their pointers, and one label stands for all below.
    let other = own4
        .rsplit_once('.')
        .map_or(String::new(), |(net, _)| format!("{net}.77"));
    a.ok(&["dns", "add", "lab", "printer", &other])?;
    a.ok(&["dns", "add", "lab", "*.apps", &web4])?;
    leads(&a, "printer.lab.internal", &other, SOON)?;
    leads(&a, "shop.apps.lab.internal", &web4, SOON)?;
    for (address, name) in [(&other, "printer"), (&web4, "web"), (&web6, "web")] {
        let found = a.ns().ok(&["getent", "hosts", address])?;
        ensure!(
            found.contains(&format!("{name}.lab.internal")),
            "{address}: {found}"
        );
    }
    let none = a.ns().run(&["getent", "ahosts", "nosuch.lab.internal"])?;
    ensure!(none.code != 0, "{none}");
    // All else goes where it went before, and nothing of ours does.
    leads(&a, "plain.example", "192.0.2.10", SOON)?;
    let counts = a.ok(&["metrics"])?;
    let forwarded = counts
        .lines()
        .find(|l| l.contains("byway_dns") && l.contains("forwarded"));
    ensure!(
        forwarded.is_some_and(|line| line.ends_with(" 0")),
        "a foreign name was asked here: {forwarded:?}"
    );
    let outside = resolved.outside()?;
    ensure!(
        outside.contains("plain.example")
            && !outside.contains("internal")
            && !outside.contains("arpa"),
        "asked outside: {outside}"
    );
    a.terminate()
}

/// Whatever can be set for a link, of all links. What resolved notes for itself, such as whom it asked last, is none of it.
fn settings(resolved: &Resolved) -> Result<String> {
    let mut all = String::new();
    for word in [
        "dns",
        "domain",
        "default-route",
        "llmnr",
        "mdns",
        "dnssec",
        "dnsovertls",
        "nta",
    ] {
        for line in resolved
            .ctl(&[word])?
            .lines()
            .filter(|l| l.starts_with("Link"))
        {
            all += &format!("{word} {line}\n");
        }
    }
    Ok(all)
}

fn resolved_is_told_again_and_left_as_it_was(lab: &Lab) -> Result<()> {
    let (a, x) = (lab.host("a")?, lab.host("x")?);
    let mut resolved = Resolved::start(&a, &x)?;
    let domains = |resolved: &Resolved| resolved.ctl(&["domain"]);
    let before = settings(&resolved)?;
    a.start()?;
    a.json(&["create", "lab"])?;
    a.json(&["create", "two"])?;
    let (lab4, two4) = (a.overlay("lab")?.0, a.overlay("two")?.0);
    let both = |limit| -> Result<()> {
        leads(&a, "a.lab.internal", &lab4, limit)?;
        leads(&a, "a.two.internal", &two4, limit).map(drop)
    };
    both(KNOWN)?;
    resolved.restart()?;
    both(KNOWN).context("resolved was started again")?;
    a.ns().ip(&["link", "del", "bw-lab"])?;
    both(KNOWN).context("the link was made again")?;
    resolved.ctl(&["revert", "bw-lab"])?;
    leads(&a, "a.lab.internal", &lab4, Duration::from_secs(20))
        .context("somebody reverted the link")?;
    a.ok(&["leave", "two"])?;
    until("the subnet's domains are gone", SOON, || {
        let domains = domains(&resolved)?;
        ensure!(
            !domains.contains("two.internal") && domains.contains("~lab.internal"),
            "{domains}"
        );
        Ok(true)
    })?;
    says(&a, "works")?;
    // A kill leaves nothing, for it goes with the link.
    a.kill9()?;
    let state = a.state().to_string_lossy().into_owned();
    a.ok(&["cleanup", "--state-dir", &state])?;
    until("resolved is as it was", SOON, || {
        let now = settings(&resolved)?;
        ensure!(now == before, "{now}\nbefore:\n{before}");
        Ok(true)
    })?;
    a.start()?;
    leads(&a, "a.lab.internal", &lab4, KNOWN)?;
    a.terminate()?;
    let after = settings(&resolved)?;
    ensure!(after == before, "after a stop: {after}");
    Ok(())
}

fn two_daemons_share_a_resolved(lab: &Lab) -> Result<()> {
    let (a, x) = (lab.host("a")?, lab.host("x")?);
    let resolved = Resolved::start(&a, &x)?;
    let other = Host::new(
        "other",
        a.ns().clone(),
        lab.dir(),
        a.under4().to_owned(),
        a.under6().to_owned(),
    )?;
    let config = "version = 1\n[node]\nname = \"other\"\n[transport]\nlisten = [\"udp/4200\", \"tcp/4200\"]\n";
    std::fs::write(other.dir().join("byway.toml"), config)?;
    other.set_env("DBUS_SYSTEM_BUS_ADDRESS", &address(&a));
    other.set_env("BYWAY_DNS_HOST", "auto");
    a.start()?;
    other.start()?;
    a.json(&["create", "lab"])?;
    other.json(&["create", "side"])?;
    let (lab4, side4) = (a.overlay("lab")?.0, other.overlay("side")?.0);
    leads(&a, "a.lab.internal", &lab4, KNOWN)?;
    leads(&a, "other.side.internal", &side4, KNOWN)?;
    for host in [&*a, &other] {
        says(host, "works")?;
    }
    other.kill9()?;
    let domains = resolved.ctl(&["domain"])?;
    ensure!(domains.contains("~lab.internal"), "{domains}");
    until("the killed one's domains are gone", SOON, || {
        Ok(!resolved.ctl(&["domain"])?.contains("side.internal"))
    })?;
    let state = other.state().to_string_lossy().into_owned();
    other.ok(&["cleanup", "--state-dir", &state])?;
    leads(&a, "a.lab.internal", &lab4, SOON).map(drop)
}

/// The daemon as a user who is not root: systemd-resolved takes nothing from him, until polkit has our rule.
fn without_a_rule_resolved_refuses_and_status_says_so(lab: &Lab) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown};
    const NOBODY: u32 = 65_534;
    let (a, x) = (lab.host("a")?, lab.host("x")?);
    let mut resolved = Resolved::start(&a, &x)?;
    std::fs::set_permissions(lab.dir(), PermissionsExt::from_mode(0o711))?;
    chown(a.dir(), Some(NOBODY), Some(NOBODY))?;
    let caps = "+net_admin,+net_bind_service";
    // As udev makes it: for everybody.
    let device =
        "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec \"$@\"";
    a.start_under(&[
        "unshare",
        "-m",
        "sh",
        "-c",
        device,
        "sh",
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        &format!("--inh-caps={caps}"),
        &format!("--ambient-caps={caps}"),
    ])?;
    until("the daemon answers", SOON, || {
        Ok(a.byway(&["status"])?.code == 0)
    })?;
    a.json(&["create", "lab"])?;
    says(&a, "refused")?;
    let said = problems(&a, "E-HOST-NAMES")?;
    let [problem] = &said[..] else {
        anyhow::bail!("one problem was expected: {said:?}")
    };
    ensure!(
        problem["message"]
            .to_string()
            .contains("systemd-resolved refuses")
            && problem["help"]
                .to_string()
                .contains("packaging/byway.rules"),
        "{problem}"
    );
    if !Path::new(POLKITD).exists() {
        return Err(Skip(format!("{POLKITD} is not installed (scripts/deps test)")).into());
    }
    // The rule as it is shipped, but for the name of the user.
    let rules = a.dir().join("rules.d");
    std::fs::create_dir(&rules)?;
    let rule = include_str!("../../packaging/byway.rules");
    let rule = rule.replace("\"byway\"", "\"nobody\"");
    std::fs::write(rules.join("byway.rules"), rule)?;
    let script = format!(
        "{USERS}mount --bind \"$2\" /usr/share/polkit-1/actions && mount --bind \"$3\" /etc/polkit-1/rules.d && exec \"$0\""
    );
    let (actions, rules) = (
        unpacked("systemd-resolved", "usr/share/polkit-1/actions")?,
        rules.to_string_lossy(),
    );
    let mut command = a.ns().command(&[
        "unshare",
        "-m",
        "sh",
        "-ec",
        &script,
        POLKITD,
        &a.dir().to_string_lossy(),
        &actions.to_string_lossy(),
        &rules,
    ]);
    command.env("DBUS_SYSTEM_BUS_ADDRESS", address(&a));
    resolved.polkit = Some(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    until("it is allowed", Duration::from_secs(20), || {
        let status = a.json(&["status"])?;
        ensure!(status["host_names"]["state"] == "works", "{status}");
        Ok(true)
    })?;
    leads(&a, "a.lab.internal", &a.overlay("lab")?.0, SOON)?;
    ensure!(problems(&a, "E-HOST-NAMES")?.is_empty());
    a.terminate()
}

/// Where polkit's program is.
const POLKITD: &str = "/usr/lib/polkit-1/polkitd";

fn a_host_without_such_a_resolver_is_told_what_to_do(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    a.set_env("DBUS_SYSTEM_BUS_ADDRESS", &address(&a));
    a.set_env("BYWAY_DNS_HOST", "auto");
    let etc = Path::new("/etc/netns").join(a.ns().name());
    std::fs::create_dir_all(&etc)?;
    let file = etc.join("resolv.conf");
    std::fs::write(&file, "nameserver 192.0.2.1\n")?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let (own4, _) = a.overlay("lab")?;
    says(&a, "no-service")?;
    let said = problems(&a, "E-HOST-NAMES")?;
    let [problem] = &said[..] else {
        anyhow::bail!("one problem was expected: {said:?}")
    };
    let line = format!("server=/lab.internal/{own4}");
    ensure!(
        problem["severity"] == "info" && problem["help"].to_string().contains(&line),
        "{problem}"
    );
    ensure!(std::fs::read_to_string(&file)? == "nameserver 192.0.2.1\n");
    // Who sets it up by hand, here by asking us alone, has it tried and is left in peace.
    std::fs::write(&file, format!("nameserver {own4}\n"))?;
    until("it works", Duration::from_secs(25), || {
        let status = a.json(&["status"])?;
        ensure!(status["host_names"]["state"] == "works", "{status}");
        Ok(true)
    })?;
    ensure!(problems(&a, "E-HOST-NAMES")?.is_empty());
    a.terminate()?;
    std::fs::remove_dir_all(&etc)?;
    Ok(())
}

fn openresolv_has_dnsmasq_ask_here(lab: &Lab) -> Result<()> {
    let (a, x) = (lab.host("a")?, lab.host("x")?);
    let openresolv = Openresolv::start(&a, &x)?;
    let before = openresolv.files()?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let (own4, _) = a.overlay("lab")?;
    // Before it is told, whoever asks is sent outside.
    says(&a, "works")?;
    leads(&a, "a.lab.internal", &own4, SOON)?;
    let status = a.json(&["status"])?;
    ensure!(status["host_names"]["service"] == "openresolv", "{status}");
    let found = a.ns().ok(&["getent", "hosts", &own4])?;
    ensure!(found.contains("a.lab.internal"), "{found}");
    leads(&a, "plain.example", "192.0.2.10", SOON)?;
    let outside = std::fs::read_to_string(openresolv.dir.join("asked"))?;
    ensure!(
        outside.contains("plain.example") && !outside.contains("internal"),
        "asked outside: {outside}"
    );
    // Its files outlive the link: a stop takes them back, and after a kill `cleanup` does, or the next start.
    let same = |when: &str| -> Result<()> {
        let now = openresolv.files()?;
        ensure!(now == before, "{when}: {now}\nbefore:\n{before}");
        Ok(())
    };
    a.terminate()?;
    same("after a stop")?;
    a.start()?;
    leads(&a, "a.lab.internal", &own4, KNOWN)?;
    a.kill9()?;
    ensure!(
        openresolv.files()?.contains("lab.internal"),
        "what a kill leaves"
    );
    let state = a.state().to_string_lossy().into_owned();
    let done = a.ok(&["cleanup", "--state-dir", &state])?;
    ensure!(done.contains("took bw-lab from resolvconf"), "{done}");
    same("after cleanup")?;
    a.start()?;
    leads(&a, "a.lab.internal", &own4, KNOWN)?;
    a.kill9()?;
    a.start()?;
    a.ok(&["leave", "lab"])?;
    until("what the killed one left is gone", SOON, || {
        ensure!(openresolv.files()? == before, "{}", openresolv.files()?);
        Ok(true)
    })?;
    a.terminate()
}
