//! Wrong input and missing rights: each its own message, code and exit code, and nothing changed.

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};

pub const CASES: &[Case] = &[
    fast!(wrong_arguments_have_their_exit_codes),
    fast!(overlapping_prefixes_are_refused),
    fast!(unknown_subnet_is_not_found_on_the_lan),
    fast!(wrong_configuration_names_the_nearest_key),
    fast!(missing_capability_is_named, "setpriv"),
    fast!(missing_tun_device_is_named, "unshare"),
    fast!(missing_nft_is_named, "unshare"),
    fast!(errors_are_one_json_object_when_asked),
    fast!(control_socket_survives_garbage),
];

fn wrong_arguments_have_their_exit_codes(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let before = (
        a.json(&["subnet", "ls"])?["subnets"].clone(),
        crate::lab::snapshot::of(a.ns())?,
    );
    let (long, label) = ("a".repeat(64), "u".repeat(26));
    let cases: &[(i32, &[&str])] = &[
        (2, &["create", "a.b"]),
        (2, &["create", "a/b"]),
        (2, &["create", "a\nb"]),
        (2, &["create", ""]),
        (2, &["create", "-a"]),
        (2, &["create", &long]),
        (2, &["create", "x", "--cidr4", "10.0.0.0/33"]),
        (2, &["create", "x", "--cidr4", "banana"]),
        (2, &["create", "x", "--cidr4", "fd00::/64"]),
        (2, &["create", "x", "--cidr6", "10.0.0.0/16"]),
        (2, &["create", "x", "--admission", "maybe"]),
        (2, &["create"]),
        (2, &["frobnicate"]),
        (2, &["join", "7q3k"]),
        (2, &["join", &label]),
        (
            2,
            &[
                "join",
                "00000000000000000000000000",
                "--timeout",
                "3 parsecs",
            ],
        ),
        (
            2,
            &[
                "join",
                "00000000000000000000000000",
                "--peer",
                "10.0.0.1:99999",
            ],
        ),
        (2, &["dns", "add", "lab", "www", "300.1.1.1"]),
        (2, &["dns", "add", "lab", "a..b", "10.1.1.1"]),
        (2, &["dns", "add", "lab", "here", "127.0.0.1"]),
        (2, &["dns", "add", "lab", "cloud", "169.254.169.254"]),
        (2, &["create", "x", "--cidr4", "169.254.0.0/16"]),
        (2, &["create", "x", "--cidr4", "224.0.0.0/8"]),
        (2, &["create", "x", "--cidr6", "fe80::/64"]),
        (
            2,
            &[
                "join",
                "00000000000000000000000000",
                "--allow-prefix",
                "10.0.0.1/8",
            ],
        ),
        (
            2,
            &[
                "join",
                "00000000000000000000000000",
                "--allow-domain",
                "a b",
            ],
        ),
        (2, &["lease", "add", "lab", "10.0.0.0/40"]),
        (2, &["attach", "netns"]),
        (5, &["subnet", "show", "nosuch"]),
        (5, &["leave", "nosuch"]),
        (5, &["destroy", "nosuch"]),
        (5, &["up", "nosuch"]),
        (5, &["invite", "create", "nosuch"]),
        (5, &["invite", "revoke", "nosuch"]),
        (5, &["member", "remove", "lab", "nosuch"]),
        (5, &["member", "approve", "lab", "nosuch"]),
        (5, &["detach", "nosuch"]),
        (5, &["workload", "show", "nosuch"]),
        (5, &["peer", "show", "nosuch"]),
        (5, &["dns", "ls", "nosuch"]),
        (6, &["create", "lab", "--cidr4", "10.99.0.0/16"]),
    ];
    for (exit, words) in cases {
        a.fails(*exit, "E-", words)?;
    }
    a.fails(3, "E-", &["--socket", "/nonexistent/byway.sock", "status"])?;
    let after = (
        a.json(&["subnet", "ls"])?["subnets"].clone(),
        crate::lab::snapshot::of(a.ns())?,
    );
    ensure!(
        before.0 == after.0,
        "a refused command changed the state: {} {}",
        before.0,
        after.0
    );
    before
        .1
        .assert_same(&after.1, "the kernel after refused commands")
}

fn overlapping_prefixes_are_refused(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    a.ns()
        .ip(&["route", "add", "10.50.0.0/16", "dev", "eth0"])?;
    a.rebase()?;
    a.fails(
        6,
        "E-CIDR-OVERLAP",
        &["create", "x", "--cidr4", "10.50.0.0/16"],
    )?;
    a.fails(
        6,
        "E-CIDR-OVERLAP",
        &["create", "x", "--cidr4", "10.50.7.0/24"],
    )?;
    a.fails(
        6,
        "E-CIDR-OVERLAP",
        &["create", "x", "--cidr4", "10.48.0.0/12"],
    )?;
    a.fails(
        6,
        "E-CIDR-OVERLAP",
        &["create", "x", "--cidr4", "10.99.0.0/24"],
    )
    .context("the underlay's own prefix")?;
    let made = a.json(&["create", "lab", "--cidr4", "10.60.0.0/16"])?;
    a.fails(
        6,
        "E-CIDR-OVERLAP",
        &["create", "two", "--cidr4", "10.60.128.0/17"],
    )?;
    b.ns()
        .ip(&["route", "add", "10.60.3.0/24", "dev", "eth0"])?;
    b.rebase()?;
    b.fails(
        6,
        "E-CIDR-OVERLAP",
        &["join", &crate::lab::text(&made, "invite")?],
    )?;
    b.assert_clean().context("a refused join leaves nothing")?;
    until("who could not come is no member", SOON, || {
        Ok(a.json(&["member", "ls", "lab"])?["members"]
            .as_array()
            .is_some_and(|m| m.len() == 1))
    })
    .map(drop)
}

fn unknown_subnet_is_not_found_on_the_lan(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    a.json(&["create", "lab"])?;
    b.fails(
        8,
        "E-",
        &["join", "00000000000000000000000000", "--timeout", "3s"],
    )?;
    b.assert_clean()
}

fn wrong_configuration_names_the_nearest_key(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let binary = crate::lab::binary().to_string_lossy().into_owned();
    let file = a.dir().join("wrong.toml");
    let name = file.to_string_lossy().into_owned();
    let (state, socket) = (
        a.state().to_string_lossy().into_owned(),
        a.socket().to_string_lossy().into_owned(),
    );
    let check = || {
        a.ns().run(&[
            "timeout",
            "10",
            &binary,
            "daemon",
            "--check",
            "--config",
            &name,
            "--state-dir",
            &state,
            "--socket",
            &socket,
        ])
    };
    for (text, nearest) in [
        (
            "version = 1\n[transport]\nlan_discovry = true\n",
            "lan_discovery",
        ),
        ("version = 1\n[dsn]\nmode = \"off\"\n", "dns"),
        ("version = 1\n[dns]\nmode = \"spilt\"\n", "split"),
    ] {
        std::fs::write(&file, text)?;
        let answer = check()?;
        ensure!(
            answer.code != 0 && answer.err.contains("error: ") && answer.err.contains(nearest),
            "{answer}"
        );
    }
    std::fs::write(&file, "version = 1\n[node\n")?;
    ensure!(check()?.code != 0, "a file that is no TOML");
    std::fs::write(&file, "version = 1\n[node]\nname = \"a\"\n")?;
    let answer = check()?;
    ensure!(answer.code == 0, "{answer}");
    std::fs::remove_file(&file)?;
    let answer = check()?;
    ensure!(
        answer.code != 0 && answer.err.contains(&name),
        "a missing --config file is an error: {answer}"
    );
    Ok(())
}

/// Starts a daemon that lacks something; it may refuse to start or refuse to create, but says which thing is missing,
/// with a code, and leaves no trace.
fn lacks(host: &Host, below: &[&str], word: &str, commands: &[&[&str]]) -> Result<()> {
    host.start_under(below)?;
    until("it answers or ends", SOON, || {
        Ok(host.ended()?.is_some() || host.byway(&["status"])?.code == 0)
    })?;
    let said = if host.ended()?.is_some() {
        ensure!(host.wait_ended()? != 0, "it ended with success");
        host.log_tail(10)
    } else {
        let mut said = String::new();
        for words in commands {
            let answer = host.byway(words)?;
            said = answer.err.clone();
            if answer.code != 0 {
                answer
                    .assert_error(1, "E-")
                    .or_else(|_| answer.assert_error(4, "E-"))?;
                break;
            }
        }
        said
    };
    ensure!(
        said.contains(word) && said.contains("(E-"),
        "the message names {word}: {said}"
    );
    ensure!(!said.contains("panicked"), "{said}");
    if host.is_running() {
        let _ = host.byway(&["destroy", "lab"]);
        host.terminate()?;
    }
    host.assert_clean()
}

fn missing_capability_is_named(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    lacks(
        &a,
        &[
            "setpriv",
            "--inh-caps=-net_admin",
            "--bounding-set=-net_admin",
        ],
        "CAP_NET_ADMIN",
        &[&["create", "lab"]],
    )
}

fn missing_tun_device_is_named(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let hide = "mount -t tmpfs none /dev/net && exec \"$@\"";
    lacks(
        &a,
        &["unshare", "-m", "sh", "-c", hide, "sh"],
        "/dev/net/tun",
        &[&["create", "lab"]],
    )
}

fn missing_nft_is_named(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let empty = lab.dir().join("no-program");
    std::fs::write(&empty, "")?;
    // A file that cannot be run in place of every `nft`.
    let hide = "for d in /usr/sbin /sbin /usr/bin /usr/local/sbin; do [ -e $d/nft ] && mount --bind \"$0\" $d/nft; done; exec \"$@\"";
    let empty = empty.to_string_lossy().into_owned();
    let map = ["map", "add", "lab", "tcp", "0.0.0.0:8080", "a:80"];
    lacks(
        &a,
        &["unshare", "-m", "sh", "-c", hide, &empty],
        "nft",
        &[&["create", "lab"], &map],
    )
}

fn errors_are_one_json_object_when_asked(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    let answer = a.byway(&["--json", "subnet", "show", "nosuch"])?;
    let value = answer.value()?;
    ensure!(
        answer.code == 5
            && value["error"]["code"]
                .as_str()
                .is_some_and(|c| c.starts_with("E-")),
        "{answer}"
    );
    ensure!(
        value["error"]["message"].is_string() && value["error"]["hint"].is_string(),
        "{answer}"
    );
    // Global options may stand before or after the verb.
    let other = a.byway(&["subnet", "show", "nosuch", "--json"])?;
    ensure!(other.out == answer.out && other.code == 5, "{other}");
    Ok(())
}

fn control_socket_survives_garbage(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let deep = format!(
        "POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n{}",
        "[".repeat(20_000)
    );
    let huge =
        "POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{".to_owned();
    for bytes in [
        b"\x00\xff\xfe garbage\r\n\r\n".to_vec(),
        deep.into_bytes(),
        huge.into_bytes(),
        vec![b'A'; 1 << 20],
    ] {
        use std::io::Write as _;
        let mut stream = std::os::unix::net::UnixStream::connect(a.socket())?;
        // The daemon may close at once: a failed write is as good as a refusal.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Both);
        ensure!(
            a.byway(&["status"])?.code == 0,
            "the daemon answers after garbage"
        );
    }
    Ok(())
}
