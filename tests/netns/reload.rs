//! A reload: what it takes over, what it names as left to a restart, what it refuses.

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};

pub const CASES: &[Case] = &[
    fast!(a_reload_takes_over_what_it_can_and_names_what_needs_a_restart),
    fast!(a_reload_tries_again_what_failed_and_names_what_it_does_not_take_over),
    fast!(a_reload_without_the_file_that_declared_a_membership_is_refused),
];

/// Metrics over TCP, as a collector reads them.
fn scrape(host: &Host, port: u16) -> Result<()> {
    let ask = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3; cat <&3"
    );
    let answer = host.ns().ok(&["bash", "-c", &ask])?;
    ensure!(
        answer.contains("application/openmetrics-text") && answer.contains("byway_info{"),
        "{answer}"
    );
    ensure!(answer.ends_with("# EOF\n"), "it was cut off: {answer}");
    Ok(())
}

/// Whether a reload finds that a subnet is declared no more, and a further reading leaves it.
fn is_left(host: &Host, id: &str) -> Result<()> {
    let told = host.ok(&["reload"])?;
    ensure!(
        told.contains(&format!("{id} is declared no more: it is left in")),
        "{told}"
    );
    until("it is left", SOON * 2, || {
        Ok(host.json(&["subnet", "ls"])?["subnets"]
            .as_array()
            .is_some_and(Vec::is_empty))
    })?;
    Ok(())
}

fn a_reload_takes_over_what_it_can_and_names_what_needs_a_restart(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.host("b")?);
    let file = b.dir().join("byway.toml");
    let base = "version = 1\n[node]\nname = \"b\"\n";
    let write = |more: &str| {
        std::fs::write(&file, format!("{base}{more}")).context("write the configuration")
    };
    b.start()?;
    let invite = b.dir().join("invite");
    let created = a.json(&["create", "lab"])?;
    std::fs::write(&invite, text(&created, "invite")?)?;
    let id = text(&created, "id")?;
    ensure!(
        b.ok(&["reload"])?.contains("nothing changed"),
        "nothing was changed"
    );
    // Everything that is taken over at once; `dns.mode` is not.
    let declared = format!(
        "[[subnet]]\nid = \"{id}\"\ninvite_file = \"{}\"\n",
        invite.display()
    );
    let settings = "[transport]\nstun = [\"192.0.2.7\"]\n[dns]\nmode = \"off\"\n[log]\nlevel = \"debug\"\n[limits]\n\
                    connections = 100\napi_clients = 4\n[metrics]\nlisten = \"127.0.0.1:9100\"\n";
    write(&format!("{settings}{declared}"))?;
    let told = b.ok(&["reload"])?;
    for part in [
        "taken over: log.level, transport.stun, limits.connections, limits.api_clients, metrics.listen",
        "a restart is needed for: dns.mode",
        &id,
    ] {
        ensure!(told.contains(part), "{part}: {told}");
    }
    until("it is in the declared subnet", SOON, || {
        Ok(b.members("lab")? == ["a", "b"])
    })?;
    scrape(&b, 9100)?;
    until("debug lines are logged", SOON, || {
        Ok(b.log_tail(1000).contains(" DEBUG byway"))
    })?;
    let problems = b.json(&["status"])?["problems"].to_string();
    ensure!(
        problems.contains("E-CONFIG-IDLE") && problems.contains("transport.stun"),
        "{problems}"
    );
    // What the command line changes is shown with where it comes from.
    b.ok(&["subnet", "host", "lab", "tcp/22"])?;
    let shown = b.ok(&["config", "show", "--effective", "--origin"])?;
    for part in [
        &format!("limits.connections = 100   # {}:", file.display())[..],
        "dns.mode = \"split\"   # default",
        "host = \"tcp/22\"   # command line (subnet host)",
        &format!("node.socket = \"{}\"   # --socket", b.socket().display()),
        &format!("[[subnet]]   # {}:", file.display()),
    ] {
        ensure!(shown.contains(part), "{part}: {shown}");
    }
    ensure!(
        a.ok(&["config", "show", "--effective", "--origin"])?
            .contains("[[subnet]]   # command line (create)"),
        "who made it"
    );
    // A file that the environment names is asked for, and no daemon.
    a.set_env("BYWAY_CONFIG", &file.to_string_lossy());
    ensure!(
        a.ok(&["config", "show", "--effective"])?
            .contains("limits.connections = 100"),
        "the file of b"
    );
    // What is wrong changes nothing, and neither does a port that is taken.
    write("[limits]\nconnections = 0\n")?;
    b.fails(2, "E-CONFIG", &["reload"])?;
    let _taken = b.ns().serve("tcp", "127.0.0.1", 9101)?;
    write(&format!("{}{declared}", settings.replace("9100", "9101")))?;
    b.fails(6, "E-LISTEN-IN-USE", &["reload"])?;
    scrape(&b, 9100)?;
    ensure!(b.members("lab")? == ["a", "b"], "it is a member still");
    // A membership that is declared no more ends, and metrics with the address.
    write("")?;
    let told = b.ok(&["reload"])?;
    ensure!(
        told.contains(&format!("{id} is declared no more: it is left in"))
            && told.contains("metrics.listen"),
        "{told}"
    );
    until("the owner heard of it", SOON * 2, || {
        Ok(a.members("lab")? == ["a"])
    })?;
    ensure!(scrape(&b, 9100).is_err(), "metrics are served still");
    Ok(())
}

fn a_reload_tries_again_what_failed_and_names_what_it_does_not_take_over(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.host("b")?);
    let file = b.dir().join("byway.toml");
    let write = |more: &str| {
        std::fs::write(&file, format!("version = 1\n[node]\nname = \"b\"\n{more}"))
            .context("write the configuration")
    };
    b.start()?;
    let invite = b.dir().join("invite");
    let created = a.json(&["create", "lab"])?;
    let id = text(&created, "id")?;
    let declared = format!("[[subnet]]\ninvite_file = \"{}\"\n", invite.display());
    // What fails is told each time, until it is mended.
    write(&declared)?;
    for _ in 0..2 {
        let told = b.fails(1, "E-FILE", &["reload"])?;
        ensure!(
            told.err
                .contains("is not in force: read its invite: No such file"),
            "{told}"
        );
    }
    // It is shown before it is a membership.
    let shown = b.json(&["config", "show", "--effective"])?;
    let subnet = &shown["subnets"][0];
    ensure!(
        subnet["invite_file"] == invite.to_string_lossy().as_ref() && subnet["id"].is_null(),
        "{shown}"
    );
    ensure!(
        subnet["up"].is_null() && subnet["name"].is_null() && subnet["ip"].is_null(),
        "{shown}"
    );
    std::fs::write(&invite, text(&created, "invite")?)?;
    ensure!(
        b.ok(&["reload"])?.contains(&id),
        "it is asked again without a change of the table"
    );
    until("it is in the declared subnet", SOON, || {
        Ok(b.members("lab")? == ["a", "b"])
    })?;
    // An invite that has served may go.
    std::fs::remove_file(&invite)?;
    ensure!(b.ok(&["reload"])?.contains("nothing changed"), "it stands");
    // What a membership does not follow is named.
    write(&format!(
        "{declared}name = \"other\"\nas = \"elsewhere\"\nhost = \"tcp/22\"\n"
    ))?;
    let told = b.ok(&["reload"])?;
    for part in [
        format!("this machine is tcp/22 to {id}"),
        format!("not taken over for {id}: name, as"),
    ] {
        ensure!(told.contains(&part), "{part}: {told}");
    }
    write(&declared)?;
    let told = b.ok(&["reload"])?;
    ensure!(
        told.contains(&format!("this machine stays tcp/22 to {id}")),
        "{told}"
    );
    ensure!(
        b.json(&["subnet", "host", "lab"])?["host"] == "tcp/22",
        "as it was told"
    );
    // Nothing is left while a declared invite cannot be read: it may be for that.
    write(&declared.replace("/invite\"", "/unreadable\""))?;
    let told = b.fails(1, "E-FILE", &["reload"])?;
    ensure!(
        told.err.contains(&format!(
            "{id} is kept until each declared invite can be read"
        )),
        "{told}"
    );
    ensure!(b.members("lab")? == ["a", "b"], "it is a member still");
    write("")?;
    is_left(&b, &id)
}

fn a_reload_without_the_file_that_declared_a_membership_is_refused(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.host("b")?);
    let (main, aside) = (b.dir().join("byway.toml"), b.dir().join("byway.toml.aside"));
    let part = b.dir().join("conf.d/lab.toml");
    std::fs::create_dir(b.dir().join("conf.d"))?;
    let invite = b.dir().join("invite");
    let created = a.json(&["create", "lab"])?;
    let id = text(&created, "id")?;
    std::fs::write(&invite, text(&created, "invite")?)?;
    let declared = format!("[[subnet]]\ninvite_file = \"{}\"\n", invite.display());
    std::fs::write(&part, &declared)?;
    b.start()?;
    until("it is in the declared subnet", SOON, || {
        Ok(b.members("lab")? == ["a", "b"])
    })?;
    for (file, why) in [(&part, &id[..]), (&main, "No such file")] {
        std::fs::rename(file, &aside)?;
        let told = b.fails(2, "E-CONFIG-READ", &["reload"])?;
        ensure!(told.err.contains(why), "{told}");
        std::fs::rename(&aside, file)?;
        ensure!(
            b.ok(&["reload"])?.contains("nothing changed"),
            "nothing was changed by that"
        );
    }
    // Declared elsewhere it may go, and an empty file declares nothing.
    let other = b.dir().join("conf.d/other.toml");
    std::fs::rename(&part, &other)?;
    ensure!(
        b.ok(&["reload"])?.contains("nothing changed"),
        "it has moved"
    );
    std::fs::write(&other, "")?;
    is_left(&b, &id)
}
