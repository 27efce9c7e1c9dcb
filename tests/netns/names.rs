//! Names as the RFCs say, at every member.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until, v4, v6};

pub const CASES: &[Case] = &[
    fast!(zone_answers_as_the_rfcs_say),
    fast!(added_records_reach_other_members_in_five_seconds),
    fast!(names_of_removed_members_are_withdrawn),
    fast!(added_addresses_have_pointers),
    fast!(who_is_in_two_subnets_resolves_the_names_of_both),
    fast!(resolver_on_the_hosts_link_is_asked, "python3"),
    fast!(only_overlay_addresses_are_listened_on),
    fast!(records_of_every_size_the_rfc_allows_are_answered),
];

fn zone_answers_as_the_rfcs_say(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let web_at = a.attach(&web, "lab", "web")?;
    let db_at = b.attach(&db, "lab", "db")?;
    let ((b4, b6), (web4, web6)) = (b.overlay("lab")?, (v4(&web_at)?, v6(&web_at)?));
    b.ns()
        .resolves(&b4, &["web.lab.internal", "A"], &web4, SOON)?;
    let resolver = db_at["dns"][0].as_str().unwrap_or(&b4).to_owned();
    // From the host at its own address of both families, and from a workload at the resolver it was given.
    for (asker, server) in [(b.ns(), &b4), (b.ns(), &b6), (&db, &resolver)] {
        let a = asker.dig(server, &["web.lab.internal", "A"])?;
        ensure!(
            a.status == "NOERROR"
                && a.answers == [web4.clone()]
                && a.flags.contains(&"aa".to_owned()),
            "{a:?}"
        );
        let aaaa = asker.dig(server, &["WEB.Lab.INTERNAL", "AAAA"])?;
        ensure!(
            aaaa.status == "NOERROR" && aaaa.answers == [web6.clone()],
            "case does not matter: {aaaa:?}"
        );
        let ptr = asker.dig(server, &["-x", &web4])?;
        ensure!(ptr.answers == ["web.lab.internal."], "{ptr:?}");
        let ptr6 = asker.dig(server, &["-x", &web6])?;
        ensure!(ptr6.answers == ["web.lab.internal."], "{ptr6:?}");
        let none = asker.dig(server, &["nosuch.lab.internal", "A"])?;
        ensure!(
            none.status == "NXDOMAIN" && none.authority.contains(&"SOA".to_owned()),
            "NXDOMAIN with SOA: {none:?}"
        );
        let empty = asker.dig(server, &["web.lab.internal", "MX"])?;
        ensure!(
            empty.status == "NOERROR" && empty.answers.is_empty(),
            "no such type is NOERROR: {empty:?}"
        );
        ensure!(
            empty.authority.contains(&"SOA".to_owned()),
            "an empty answer carries the SOA: {empty:?}"
        );
        let tcp = asker.dig(server, &["+tcp", "web.lab.internal", "A"])?;
        ensure!(tcp.answers == [web4.clone()], "over TCP: {tcp:?}");
        let soa = asker.dig(server, &["lab.internal", "SOA"])?;
        ensure!(
            soa.status == "NOERROR" && !soa.answers.is_empty(),
            "{soa:?}"
        );
    }
    let member = b.ns().dig(&b4, &["a.lab.internal", "A"])?;
    ensure!(
        member.answers == [a.overlay("lab")?.0],
        "every member has a name: {member:?}"
    );
    Ok(())
}

fn added_records_reach_other_members_in_five_seconds(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c"])?;
    let [a, b, c] = &hosts[..] else {
        unreachable!("three hosts were asked for")
    };
    let ((a4, _), (b4, _), (c4, _)) = (a.overlay("lab")?, b.overlay("lab")?, c.overlay("lab")?);
    a.ok(&["dns", "add", "lab", "db", &a4])?;
    a.ok(&["dns", "add", "lab", "alias", "--cname", "db"])?;
    a.ok(&["dns", "add", "lab", "note", "--txt", "hello world"])?;
    a.ok(&["dns", "add", "lab", "_sip._tcp", "--srv", "10 20 5060 db"])?;
    let limit = Duration::from_secs(5);
    for (host, server) in [(b, &b4), (c, &c4)] {
        host.ns()
            .resolves(server, &["db.lab.internal", "A"], &a4, limit)?;
        host.ns().resolves(
            server,
            &["alias.lab.internal", "CNAME"],
            "db.lab.internal.",
            limit,
        )?;
        host.ns()
            .resolves(server, &["alias.lab.internal", "A"], &a4, limit)?;
        host.ns().resolves(
            server,
            &["note.lab.internal", "TXT"],
            "\"hello world\"",
            limit,
        )?;
        host.ns().resolves(
            server,
            &["_sip._tcp.lab.internal", "SRV"],
            "10 20 5060 db.lab.internal.",
            limit,
        )?;
    }
    let query = b.json(&["dns", "query", "db.lab.internal", "A"])?;
    ensure!(query["records"][0]["value"] == a4.as_str(), "{query}");
    a.ok(&["dns", "rm", "lab", "db"])?;
    crate::lab::until("the removed name is gone at the others", limit, || {
        Ok(b.ns().dig(&b4, &["db.lab.internal", "A"])?.status == "NXDOMAIN")
    })?;
    a.fails(5, "E-", &["dns", "rm", "lab", "nosuch"]).map(drop)
}

fn names_of_removed_members_are_withdrawn(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b", "c"])?;
    let [a, b, c] = &hosts[..] else {
        unreachable!("three hosts were asked for")
    };
    let b4 = b.overlay("lab")?.0;
    b.ns()
        .resolves(&b4, &["c.lab.internal", "A"], &c.overlay("lab")?.0, SOON)?;
    a.ok(&["member", "remove", "lab", "c"])?;
    crate::lab::until("the removed member's name is gone", SOON, || {
        Ok(b.ns().dig(&b4, &["c.lab.internal", "A"])?.status == "NXDOMAIN")
    })?;
    Ok(())
}

fn added_addresses_have_pointers(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let near = |address: &str, last: &str| {
        address
            .rsplit_once('.')
            .map(|(net, _)| format!("{net}.{last}"))
            .unwrap_or_default()
    };
    let ((a4, _), (b4, _)) = (a.overlay("lab")?, b.overlay("lab")?);
    let (mine, others) = (near(&b4, "77"), near(&a4, "78"));
    b.ok(&["dns", "add", "lab", "printer", &mine])?;
    // A member does not say what another's address is called; the owner may.
    b.ok(&["dns", "add", "lab", "usurper", &others])?;
    for (host, server) in [(a, &a4), (b, &b4)] {
        host.ns()
            .resolves(server, &["-x", &mine], "printer.lab.internal.", SOON)?;
        host.ns()
            .resolves(server, &["usurper.b.lab.internal", "A"], &others, SOON)?;
        let foreign = host.ns().dig(server, &["-x", &others])?;
        ensure!(foreign.answers.is_empty(), "{foreign:?}");
    }
    // A name of its own stays what an address is called.
    a.ok(&["dns", "add", "lab", "nas", &others])?;
    a.ok(&["dns", "add", "lab", "alias", &b4])?;
    b.ns()
        .resolves(&b4, &["-x", &others], "nas.lab.internal.", SOON)?;
    let member = b.ns().dig(&b4, &["-x", &b4])?;
    ensure!(member.answers == ["b.lab.internal."], "{member:?}");
    b.ok(&["dns", "rm", "lab", "printer"])?;
    crate::lab::until("the pointer goes with the name", SOON, || {
        Ok(a.ns().dig(&a4, &["-x", &mine])?.answers.is_empty())
    })?;
    Ok(())
}

fn who_is_in_two_subnets_resolves_the_names_of_both(lab: &Lab) -> Result<()> {
    let a = lab.subnet(&["a"])?.remove(0);
    a.json(&["create", "two"])?;
    let ((lab4, _), (two4, _)) = (a.overlay("lab")?, a.overlay("two")?);
    a.ok(&["dns", "add", "two", "other", &two4])?;
    a.ok(&[
        "dns",
        "add",
        "lab",
        "across",
        "--cname",
        "other.two.internal",
    ])?;
    let (both, one) = (lab.workload("both")?, lab.workload("one")?);
    let resolvers = ["lab", "two"].map(|subnet| -> Result<String> {
        a.attach(&both, subnet, "both")?["dns"][0]
            .as_str()
            .map(str::to_owned)
            .context("a resolver")
    });
    a.attach(&one, "lab", "one")?;
    let names = [
        ("other.two.internal", &two4),
        ("across.lab.internal", &two4),
        ("a.lab.internal", &lab4),
    ];
    for resolver in resolvers {
        let resolver = resolver?;
        for (name, address) in names {
            for asker in [a.ns(), &both] {
                asker.resolves(&resolver, &[name, "A"], address, SOON)?;
            }
        }
    }
    // By the file the first attach made: the second subnet is in it, with its short names.
    for name in ["other.two.internal", "other", "across", "both.two.internal"] {
        both.ok(&["getent", "hosts", name])
            .with_context(|| format!("{name} by the resolver file"))?;
    }
    let alias = one.dig(&lab4, &["across.lab.internal", "A"])?;
    ensure!(
        !alias.answers.contains(&two4),
        "who is in one of them only is not told the other's: {alias:?}"
    );
    // Leaving one leaves the other's names, and leaving both leaves nothing.
    a.ok(&["detach", "both", "--subnet", "lab"])?;
    both.ok(&["getent", "hosts", "other"])?;
    ensure!(
        both.run(&["getent", "hosts", "a.lab.internal"])?.code != 0,
        "it is in that subnet no more"
    );
    a.ok(&["detach", "both", "--subnet", "two"])?;
    ensure!(
        !std::path::Path::new("/etc/netns")
            .join(both.name())
            .exists(),
        "the file and its directory go"
    );
    Ok(())
}

/// Answers every question for an A record with 192.0.2.10, on one address of one link.
const OUTSIDE: &str = "import socket, sys
at = (sys.argv[1], 53, 0, socket.if_nametoindex(sys.argv[2]))
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(at)
while True:
    q, who = s.recvfrom(4096)
    end = q.index(0, 12) + 5
    a = q[:2] + b'\\x81\\x80' + q[4:6] + b'\\0\\1\\0\\0\\0\\0' + q[12:end]
    s.sendto(a + b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\\xc0\\0\\2\\x0a', who)";

fn resolver_on_the_hosts_link_is_asked(lab: &Lab) -> Result<()> {
    let (a, x) = (lab.host("a")?, lab.host("x")?);
    let shown = x
        .ns()
        .ip(&["-o", "-6", "addr", "show", "dev", "eth0", "scope", "link"])?;
    let local = shown
        .split_whitespace()
        .find(|w| w.starts_with("fe80"))
        .context("a link-local address")?;
    let local = local.split('/').next().unwrap_or_default();
    let mut outside = x
        .ns()
        .command(&["python3", "-c", OUTSIDE, local, "eth0"])
        .spawn()?;
    let dir = std::path::Path::new("/etc/netns").join(a.ns().name());
    std::fs::create_dir_all(&dir)?;
    std::fs::write(
        dir.join("resolv.conf"),
        format!("nameserver {local}%eth0\n"),
    )?;
    let outcome = (|| -> Result<()> {
        a.start()?;
        a.json(&["create", "lab"])?;
        let web = lab.workload("web")?;
        let at = a.attach(&web, "lab", "web")?;
        let resolver = at["dns"][0].as_str().context("a resolver")?.to_owned();
        for asker in [a.ns(), &web] {
            asker.resolves(
                &resolver,
                &["+recurse", "plain.example", "A"],
                "192.0.2.10",
                SOON,
            )?;
        }
        Ok(())
    })();
    outside.kill()?;
    outside.wait()?;
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn only_overlay_addresses_are_listened_on(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a"])?;
    let a = &hosts[0];
    let (a4, a6) = a.overlay("lab")?;
    a.ns().dig(&a4, &["a.lab.internal", "A"])?;
    let listening = a.ns().ok(&["ss", "-Hlnut", "sport = 53"])?;
    for line in listening.lines() {
        ensure!(
            line.contains(&format!("{a4}:53")) || line.contains(&format!("[{a6}]:53")),
            "port 53 elsewhere: {line}"
        );
    }
    let outside = lab.host("x")?;
    ensure!(
        outside
            .ns()
            .dig(a.under4(), &["a.lab.internal", "A"])
            .is_err(),
        "the underlay gets no answer"
    );
    Ok(())
}

/// Whatever RFC 1035 lets a record be can be said, and is answered: too much for UDP is asked again over TCP.
fn records_of_every_size_the_rfc_allows_are_answered(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (b4, _) = b.overlay("lab")?;
    texts_of_every_length(a, b, &b4)?;
    a.fails(
        2,
        "E-DNS-SIZE",
        &["dns", "add", "lab", "most", "--txt", &"x".repeat(300)],
    )?;
    the_longest_name(a, b, &b4)?;
    many_addresses_of_one_name(a, b, &b4)
}

/// A DKIM key, the borders of one string, and the longest text an answer holds.
fn texts_of_every_length(a: &Host, b: &Host, b4: &str) -> Result<()> {
    let plain = |text: &str| text.replace("\" \"", "").trim_matches('"').to_owned();
    for (name, length) in [
        ("s1._domainkey", 416),
        ("edge", 255),
        ("over", 256),
        ("empty", 0),
        ("most", 64_980),
    ] {
        let text: String = "0123456789abcdef".chars().cycle().take(length).collect();
        a.ok(&["dns", "add", "lab", name, "--txt", &text])?;
        let full = format!("{name}.lab.internal");
        until(
            &format!("{full} is answered over TCP"),
            Duration::from_secs(5),
            || {
                let tcp = b.ns().dig(b4, &["+tcp", &full, "TXT"])?;
                Ok(tcp.answers.len() == 1 && plain(&tcp.answers[0]) == text)
            },
        )?;
        let udp = b.ns().dig(b4, &["+ignore", &full, "TXT"])?;
        let cut = udp.flags.contains(&"tc".to_owned());
        ensure!(
            cut == (length > 430),
            "{full} of {length} bytes over UDP: {:?}, {} answers",
            udp.flags,
            udp.answers.len()
        );
        ensure!(
            cut || plain(&udp.answers[0]) == text,
            "{full} over UDP: {udp:?}"
        );
        // The usual way: UDP, then TCP where it was cut.
        ensure!(
            plain(&b.ns().dig(b4, &[&full, "TXT"])?.answers[0]) == text,
            "{full}"
        );
        let asked = b.json(&["dns", "query", &full, "TXT"])?;
        ensure!(
            asked["records"][0]["value"] == text.as_str(),
            "{full}: {asked}"
        );
    }
    Ok(())
}

/// 253 characters in all, as a name, and as what an alias and a service lead to; one more is none.
fn the_longest_name(a: &Host, b: &Host, b4: &str) -> Result<()> {
    let label = "n".repeat(63);
    let longest = format!(
        "{label}.{label}.{label}.{}",
        "n".repeat(253 - 3 * 64 - ".lab.internal".len())
    );
    a.ok(&[
        "dns",
        "add",
        "lab",
        &longest,
        "10.1.2.3",
        "--ttl",
        "2147483647",
    ])?;
    b.ns().resolves(
        b4,
        &[&format!("{longest}.lab.internal"), "A"],
        "10.1.2.3",
        Duration::from_secs(5),
    )?;
    a.fails(
        2,
        "E-NAME",
        &["dns", "add", "lab", &format!("{longest}n"), "10.1.2.3"],
    )?;
    a.ok(&[
        "dns",
        "add",
        "lab",
        "far",
        "--cname",
        &format!("{longest}.lab.internal"),
    ])?;
    b.ns().resolves(
        b4,
        &["far.lab.internal", "A"],
        "10.1.2.3",
        Duration::from_secs(5),
    )?;
    a.ok(&[
        "dns",
        "add",
        "lab",
        "_far._tcp",
        "--srv",
        &format!("65535 65535 65535 {longest}.lab.internal"),
    ])?;
    let srv = format!("65535 65535 65535 {longest}.lab.internal.");
    b.ns().resolves(
        b4,
        &["_far._tcp.lab.internal", "SRV"],
        &srv,
        Duration::from_secs(5),
    )?;
    Ok(())
}

/// 200 addresses are cut over UDP, and whole over TCP.
fn many_addresses_of_one_name(a: &Host, b: &Host, b4: &str) -> Result<()> {
    let many: Vec<String> = (1..=200).map(|i| format!("10.5.0.{i}")).collect();
    let words: Vec<&str> = ["dns", "add", "lab", "many"]
        .into_iter()
        .chain(many.iter().map(String::as_str))
        .collect();
    a.ok(&words)?;
    until("all of them are answered", Duration::from_secs(5), || {
        Ok(b.ns().dig(b4, &["many.lab.internal", "A"])?.answers.len() == 200)
    })?;
    ensure!(
        b.ns()
            .dig(b4, &["+ignore", "many.lab.internal", "A"])?
            .flags
            .contains(&"tc".to_owned()),
        "UDP is cut"
    );
    Ok(())
}
