//! Where little more than HTTPS is let out: proxies that connect, that want a password, that look inside, and a reverse proxy
//! in front of a member.

use std::fs;
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::drive::peer;
use crate::lab::internet::{Internet, Uplink};
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::reach::{configure, reserved};
use crate::resolvers::unpacked;
use crate::underlay::path;
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(
        a_member_joins_where_nothing_but_a_proxy_to_port_443_leads_out,
        "tinyproxy"
    ),
    ci!(a_proxy_that_looks_inside_tls_changes_nothing, "python3"),
    long!(a_reverse_proxy_in_front_of_a_member_is_told_and_joined_by_its_name),
    long!(
        a_reload_shows_a_new_certificate_and_refuses_one_that_does_not_fit,
        "python3"
    ),
    long!(squid_connects_whom_it_knows_and_to_port_443_alone),
    long!(
        a_relay_at_port_443_carries_what_only_a_proxy_lets_out,
        "tinyproxy"
    ),
    long!(
        packets_pass_a_websocket_at_more_than_half_the_rate_of_tcp,
        "iperf3"
    ),
];

/// The port of a proxy.
const PROXY: u16 = 3128;

/// A program that ends with this.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program on a host and waits until it listens on a TCP port.
fn serves(host: &Host, words: &[&str], port: u16) -> Result<Program> {
    let log = fs::File::create(host.dir().join("program.log"))?;
    let mut command = host.ns().command(words);
    let command = command.stdout(Stdio::null()).stderr(log);
    let program = Program(command.spawn().with_context(|| format!("{words:?}"))?);
    until(&format!("{words:?} listens"), SOON, || {
        let all = host.ns().ok(&["ss", "-Hltn"])?;
        Ok(all.contains(&format!(":{port} ")))
    })?;
    Ok(program)
}

/// A proxy that connects to port 443 and nowhere else, perhaps only whom it knows.
fn tinyproxy(host: &Host, user: Option<&str>) -> Result<Program> {
    let known = user
        .map(|user| format!("BasicAuth {user}\n"))
        .unwrap_or_default();
    let file = host.dir().join("tinyproxy.conf");
    let settings = format!(
        "Port {PROXY}\nListen {}\nTimeout 600\nMaxClients 20\nConnectPort 443\n{known}",
        host.under4()
    );
    fs::write(&file, settings)?;
    let file = file.to_string_lossy().into_owned();
    serves(host, &["tinyproxy", "-d", "-c", &file], PROXY)
}

/// Squid, which connects to port 443 and nowhere else, and only `alice` whose password is `wonderland`. It runs as nobody, with
/// its shared memory and what it reads as nobody in a file system of its own.
fn squid(host: &Host) -> Result<Program> {
    let program = unpacked("squid", "usr/sbin/squid")?;
    let helper = unpacked("squid", "usr/lib/squid/basic_ncsa_auth")?;
    let mime = unpacked("squid-common", "usr/share/squid/mime.conf")?;
    let icons = unpacked("squid-common", "usr/share/squid/icons")?;
    let errors = unpacked("squid-langpack", "usr/share/squid-langpack/templates")?;
    let library = |package| unpacked(package, "usr/lib/x86_64-linux-gnu");
    let libraries = [library("libecap3")?, library("libltdl7")?];
    let [known, file] = ["known", "squid.conf"].map(|name| host.dir().join(name));
    fs::write(&known, "alice:$apr1$jjYyoTU4$TWcmkKGqqe2MNExEfrIxs0\n")?;
    let settings = format!(
        "http_port {}:{PROXY}\nvisible_hostname proxy.example\npid_filename none\ncache_log /dev/null\naccess_log none\n\
         cache deny all\ncache_effective_user nobody\ncache_effective_group nogroup\nunlinkd_program /bin/true\n\
         shutdown_lifetime 0 seconds\nmime_table {}\nicon_directory {}\nerror_directory {}\n\
         auth_param basic program /dev/shm/basic_ncsa_auth /dev/shm/known\nauth_param basic children 1\n\
         auth_param basic realm Corp net\nacl known proxy_auth REQUIRED\nacl https port 443\nhttp_access deny !https\n\
         http_access allow CONNECT known\nhttp_access deny all\n",
        host.under4(),
        mime.display(),
        icons.display(),
        errors.display(),
    );
    fs::write(&file, settings)?;
    let begin = format!(
        "mount -t tmpfs shm /dev/shm && cp {} {} /dev/shm/ && LD_LIBRARY_PATH={}:{} exec {} -N -d 1 -f {}",
        helper.display(),
        known.display(),
        libraries[0].display(),
        libraries[1].display(),
        program.display(),
        file.display(),
    );
    serves(host, &["sh", "-c", &begin], PROXY)
}

/// Lets nothing of a host pass but TCP to one address and port.
fn only(inet: &Internet<'_>, lab: &Lab, host: &str, to: &str, port: u16) -> Result<()> {
    let file = lab.dir().join("only.nft");
    let rules = format!(
        "table inet only {{\n chain f {{\n  type filter hook forward priority 0; policy accept;\n  \
         iifname \"p-{host}\" ip daddr {to} tcp dport {port} accept\n  \
         oifname \"p-{host}\" ip saddr {to} tcp sport {port} accept\n  \
         iifname \"p-{host}\" counter drop\n  oifname \"p-{host}\" counter drop\n }}\n}}\n"
    );
    fs::write(&file, rules)?;
    let file = file.to_string_lossy().into_owned();
    inet.space().ok(&["nft", "-f", &file]).map(drop)
}

/// A member that listens for WebSockets inside TLS beside the usual, and whom nobody else of the lab is.
fn founder(inet: &Internet<'_>, lines: &str) -> Result<(Rc<Host>, String)> {
    let m = inet.host("m", 1)?;
    configure(&m, &format!("[transport]\n{lines}\n"))?;
    m.start()?;
    let invite = text(&m.json(&["create", "lab"])?, "invite")?;
    Ok((m, invite))
}

const LISTEN: &str = "listen = [\"udp/4100\", \"tcp/4100\", \"tcp/443/wss\"]";

/// Both reach each other's overlay address over a WebSocket; how long that took.
fn meet(c: &Host, m: &Host) -> Result<Duration> {
    let begun = Instant::now();
    c.ns().reaches(&m.overlay("lab")?.0, SOON)?;
    m.ns().reaches(&c.overlay("lab")?.1, SOON)?;
    let took = begun.elapsed();
    let path = path(c, m.name())?;
    ensure!(
        path["kind"] == "direct" && path["carrier"] == "stream" && path["transport"] == "ws",
        "{path}"
    );
    Ok(took)
}

fn a_member_joins_where_nothing_but_a_proxy_to_port_443_leads_out(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (m, invite) = founder(&inet, LISTEN)?;
    let (x, c) = (inet.host("x", 2)?, inet.host("c", 3)?);
    only(&inet, lab, "c", x.under4(), PROXY)?;
    let proxy = tinyproxy(&x, Some("alice wonderland"))?;
    // A person who has no password, and one who has.
    configure(
        &c,
        &format!("[transport]\nproxy = \"http://{}:{PROXY}\"\n", x.under4()),
    )?;
    c.start()?;
    let place = format!("wss://{}", m.under4());
    let said = c.byway(&["peer", "connect", &place])?;
    ensure!(said.code != 0 && said.err.contains("407"), "{said}");
    ensure!(
        said.err.contains("realm \"Tinyproxy\""),
        "the realm is named: {said}"
    );
    c.terminate()?;
    let file = c.dir().join("byway.toml");
    let before = fs::read_to_string(&file)?;
    fs::write(&file, before.replace("http://", "http://alice:wonderland@"))?;
    c.start()?;
    let begun = Instant::now();
    c.json(&["join", &invite])?;
    let joined = begun.elapsed();
    let met = meet(&c, &m)?;
    eprintln!("joined through the proxy in {joined:?}, the first packets passed {met:?} later");
    ensure!(joined < Duration::from_secs(10), "joined in {joined:?}");
    let shown = c.ok(&["config", "show", "--effective"])?;
    ensure!(shown.contains("http://***@"), "{shown}");
    let log = fs::read_to_string(c.dir().join("log"))?;
    // That UDP is blocked makes it a finding, as soon as that is known.
    let doctor = c.byway(&["doctor"])?;
    let doctor = format!("{}{}", doctor.out, doctor.err);
    for told in [shown, log, c.ok(&["status", "--json"])?, doctor] {
        ensure!(
            !told.contains("wonderland") && !told.contains("alice"),
            "{told}"
        );
    }
    drop(proxy);
    Ok(())
}

fn squid_connects_whom_it_knows_and_to_port_443_alone(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (m, invite) = founder(&inet, LISTEN)?;
    let (x, c) = (inet.host("x", 2)?, inet.host("c", 3)?);
    only(&inet, lab, "c", x.under4(), PROXY)?;
    let _proxy = squid(&x)?;
    let place = format!("wss://{}", m.under4());
    let file = c.dir().join("byway.toml");
    let base = fs::read_to_string(&file)?;
    let with = |credentials: &str| {
        let proxy = format!("http://{credentials}{}:{PROXY}", x.under4());
        fs::write(&file, format!("{base}[transport]\nproxy = \"{proxy}\"\n"))
    };
    for credentials in ["", "alice:guessed@"] {
        with(credentials)?;
        c.start()?;
        let said = c.byway(&["peer", "connect", &place])?;
        ensure!(
            said.code != 0 && said.err.contains("407") && said.err.contains("realm \"Corp net\""),
            "{said}"
        );
        c.terminate()?;
    }
    with("alice:wonderland@")?;
    c.start()?;
    // Its rules let nobody connect anywhere else.
    let other = format!("/ip4/{}/tcp/4100", m.under4());
    let said = c.byway(&["peer", "connect", &other])?;
    ensure!(said.code != 0 && said.err.contains("403"), "{said}");
    c.json(&["join", &invite])?;
    meet(&c, &m)?;
    Ok(())
}

fn a_proxy_that_looks_inside_tls_changes_nothing(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (m, invite) = founder(&inet, LISTEN)?;
    let (x, c) = (inet.host("x", 2)?, inet.host("c", 3)?);
    only(&inet, lab, "c", x.under4(), PROXY)?;
    let made = rcgen::generate_simple_self_signed(["inspected.example".to_owned()])?;
    let at = |name: &str| x.dir().join(name).to_string_lossy().into_owned();
    let (certificate, key, log) = (at("cert.pem"), at("key.pem"), at("seen"));
    fs::write(&certificate, made.cert.pem())?;
    fs::write(&key, made.key_pair.serialize_pem())?;
    let program = include_str!("../lab/inspector.py");
    let port = PROXY.to_string();
    let words = [
        "python3",
        "-c",
        program,
        x.under4(),
        &port,
        &certificate,
        &key,
        &log,
        m.under4(),
        "443",
    ];
    let _proxy = serves(&x, &words, PROXY)?;
    configure(&c, "[transport]\nproxy = \"env\"\n")?;
    c.set_env("HTTPS_PROXY", &format!("http://{}:{PROXY}", x.under4()));
    c.start()?;
    c.json(&["join", &invite])?;
    meet(&c, &m)?;
    let seen = fs::read_to_string(&log)?;
    ensure!(seen.contains("GET / HTTP/1.1"), "it saw {seen:?}");
    Ok(())
}

/// Makes a certificate and its key, in files on a host; what of it a client sees.
fn certificate(host: &Host) -> Result<String> {
    let made = rcgen::generate_simple_self_signed(["vpn.example".to_owned()])?;
    fs::write(host.dir().join("cert.pem"), made.cert.pem())?;
    fs::write(host.dir().join("key.pem"), made.key_pair.serialize_pem())?;
    Ok(made.cert.pem().split_whitespace().collect())
}

fn a_reload_shows_a_new_certificate_and_refuses_one_that_does_not_fit(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let m = inet.host("m", 1)?;
    let first = certificate(&m)?;
    let dir = m.dir().display().to_string();
    let lines = format!(
        "[transport]\n{LISTEN}\ntls_cert = \"{dir}/cert.pem\"\ntls_key = \"{dir}/key.pem\"\n"
    );
    configure(&m, &lines)?;
    m.start()?;
    let invite = text(&m.json(&["create", "lab"])?, "invite")?;
    let c = inet.host("c", 3)?;
    only(&inet, lab, "c", m.under4(), 443)?;
    c.start()?;
    c.json(&["join", &invite])?;
    meet(&c, &m)?;
    let since = path(&c, "m")?["since"].clone();
    let ask = format!(
        "import ssl; print(ssl.get_server_certificate((\"{}\", 443)))",
        m.under4()
    );
    let shown = || -> Result<String> {
        let pem = c.ns().ok(&["python3", "-c", &ask])?;
        Ok(pem.split_whitespace().collect())
    };
    ensure!(shown()? == first, "the certificate of the start is shown");
    let second = certificate(&m)?;
    ensure!(shown()? == first, "nothing is read before the reload");
    let told = m.ok(&["reload"])?;
    ensure!(told.contains("another certificate"), "{told}");
    ensure!(shown()? == second, "the new one is shown");
    ensure!(m.ok(&["reload"])?.contains("nothing changed"));
    // As while an ACME client has written one of the two.
    let key = fs::read(m.dir().join("key.pem"))?;
    certificate(&m)?;
    fs::write(m.dir().join("key.pem"), key)?;
    m.fails(1, "E-CERTIFICATE", &["reload"])?;
    ensure!(shown()? == second, "the one before is still shown");
    let found = m.byway(&["doctor"])?;
    ensure!(found.out.contains("not taken over"), "{found}");
    let third = certificate(&m)?;
    m.ok(&["reload"])?;
    ensure!(shown()? == third, "both files are whole");
    let problems = m.json(&["status"])?["problems"].to_string();
    ensure!(!problems.contains("E-CERTIFICATE"), "{problems}");
    ensure!(path(&c, "m")?["since"] == since, "the connection stands");
    Ok(())
}

/// A file that `ip netns exec` binds in a namespace; it and its directory are removed with this.
struct Named(std::path::PathBuf);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

/// A reverse proxy with a certificate, in front of a server of plain WebSockets on loopback.
fn nginx(host: &Host, port: u16, to: u16) -> Result<Program> {
    let program = unpacked("nginx", "usr/sbin/nginx")?;
    let made = rcgen::generate_simple_self_signed(["vpn.example".to_owned()])?;
    let dir = host.dir().to_string_lossy().into_owned();
    fs::write(format!("{dir}/cert.pem"), made.cert.pem())?;
    fs::write(format!("{dir}/key.pem"), made.key_pair.serialize_pem())?;
    let settings = format!(
        "daemon off;\npid {dir}/nginx.pid;\nerror_log stderr;\nuser root;\nevents {{}}\nhttp {{\n access_log {dir}/access;\n \
         client_body_temp_path {dir}/t1;\n proxy_temp_path {dir}/t2;\n fastcgi_temp_path {dir}/t3;\n \
         uwsgi_temp_path {dir}/t4;\n scgi_temp_path {dir}/t5;\n server {{\n  listen {}:{port} ssl;\n  \
         ssl_certificate {dir}/cert.pem;\n  ssl_certificate_key {dir}/key.pem;\n  location / {{\n   \
         proxy_pass http://127.0.0.1:{to};\n   proxy_http_version 1.1;\n   proxy_set_header Upgrade $http_upgrade;\n   \
         proxy_set_header Connection upgrade;\n   \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n   proxy_read_timeout 1h;\n  }}\n }}\n}}\n",
        host.under4()
    );
    let file = format!("{dir}/nginx.conf");
    fs::write(&file, settings)?;
    let program = program.to_string_lossy().into_owned();
    serves(host, &[&program, "-c", &file], port)
}

fn a_reverse_proxy_in_front_of_a_member_is_told_and_joined_by_its_name(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let lines = "listen = [\"/ip4/127.0.0.1/tcp/8080/ws\"]\nadvertise = [\"/dns4/vpn.example/tcp/443/wss\"]\n\
                 trusted_proxies = [\"127.0.0.1\"]";
    let (m, invite) = founder(&inet, lines)?;
    let _proxy = nginx(&m, 443, 8080)?;
    let c = inet.host("c", 3)?;
    only(&inet, lab, "c", m.under4(), 443)?;
    c.start()?;
    let place = format!("wss://{}/byway", m.under4());
    c.json(&["join", &invite, "--peer", &place])?;
    meet(&c, &m)?;
    // Another one has nothing but the invite, and a resolver that knows the name.
    let d = inet.host("d", 4)?;
    let etc = std::path::Path::new("/etc/netns").join(d.ns().name());
    fs::create_dir_all(&etc)?;
    let _named = Named(etc.join("hosts"));
    fs::write(&_named.0, format!("{} vpn.example\n", m.under4()))?;
    inet.space()
        .ok(&["nft", "delete", "table", "inet", "only"])?;
    only(&inet, lab, "d", m.under4(), 443)?;
    d.start()?;
    let invite = text(&m.json(&["invite", "create", "lab"])?, "invite")?;
    d.json(&["join", &invite])?;
    meet(&d, &m)?;
    let seen = fs::read_to_string(m.dir().join("access")).unwrap_or_default();
    ensure!(!seen.contains(" 404 "), "{seen}");
    // Each counts as itself, and not as the proxy.
    for host in [&c, &d] {
        let path = path(&m, host.name())?;
        let is_there = |via: &str| via.contains(host.under4());
        ensure!(path["via"].as_str().is_some_and(is_there), "{path}");
    }
    let counted = m.ok(&["metrics"])?;
    for none in ["unnamed", "garbled"] {
        let line = format!("byway_proxied_connections_total{{client=\"{none}\"}} 0\n");
        ensure!(counted.contains(&line), "{counted}");
    }
    Ok(())
}

fn a_relay_at_port_443_carries_what_only_a_proxy_lets_out(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relay = inet.host("relay", 1)?;
    configure(
        &relay,
        &format!("relay_only = true\n[transport]\n{LISTEN}\n"),
    )?;
    relay.start()?;
    let (id, at) = (peer(&relay)?, relay.under4());
    let nat = Uplink::behind(Kind::port_restricted());
    let (_site, m) = inet.behind("m", 10, &nat)?;
    let places = format!("[\"/ip4/{at}/udp/4100/quic-v1/p2p/{id}\"]");
    configure(&m, &format!("[transport]\nbootstrap = {places}\n"))?;
    m.start()?;
    reserved(&m)?;
    let (x, c) = (inet.host("x", 2)?, inet.host("c", 3)?);
    only(&inet, lab, "c", x.under4(), PROXY)?;
    let _proxy = tinyproxy(&x, None)?;
    let lines = format!(
        "[transport]\nproxy = \"http://{}:{PROXY}\"\nbootstrap = [\"/ip4/{at}/tcp/443/wss/p2p/{id}\"]\n",
        x.under4()
    );
    configure(&c, &lines)?;
    c.start()?;
    let invite = text(&m.json(&["create", "lab"])?, "invite")?;
    c.json(&["join", &invite])?;
    c.ns().reaches(&m.overlay("lab")?.0, SOON)?;
    m.ns().reaches(&c.overlay("lab")?.0, SOON)?;
    let path = path(&c, "m")?;
    // The other end reaches the relay by QUIC, which this one has not.
    ensure!(
        path["kind"] == "relay" && path["reason"] == "udp-blocked" && path["transport"] == "ws",
        "{path}"
    );
    Ok(())
}

/// Mbit/s of TCP through the overlay from one host to another.
fn rate(from: &Host, to: &Host) -> Result<f64> {
    let address = to.overlay("lab")?.0;
    to.ok(&["subnet", "host", "lab", "tcp/5201"])?;
    from.ns().reaches(&address, SOON)?;
    let _server = serves(to, &["iperf3", "-s", "-B", &address], 5201)?;
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        let said = from.ns().ok(&["iperf3", "-c", &address, "-t", "3", "-J"])?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
        best = best.max(bits.context("a rate")? / 1e6);
    }
    Ok(best)
}

fn packets_pass_a_websocket_at_more_than_half_the_rate_of_tcp(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let mut rates: Vec<f64> = Vec::new();
    for (number, listen, transport) in [
        (1, "tcp/4100", "tcp"),
        (2, "tcp/8080/ws", "ws"),
        (3, "tcp/443/wss", "ws"),
    ] {
        let m = inet.host(&format!("m{number}"), number)?;
        let c = inet.host(&format!("c{number}"), number + 10)?;
        for (host, listen) in [(&m, listen), (&c, "tcp/4100")] {
            configure(host, &format!("[transport]\nlisten = [\"{listen}\"]\n"))?;
            host.start()?;
        }
        // Nobody dials the other way.
        only(
            &inet,
            lab,
            &format!("c{number}"),
            m.under4(),
            match number {
                1 => 4100,
                2 => 8080,
                _ => 443,
            },
        )?;
        let invite = text(&m.json(&["create", "lab"])?, "invite")?;
        c.json(&["join", &invite])?;
        rates.push(rate(&c, &m)?);
        let path = path(&c, m.name())?;
        ensure!(path["transport"] == transport, "{path}");
        inet.space()
            .ok(&["nft", "delete", "table", "inet", "only"])?;
        for host in [&c, &m] {
            host.terminate()?;
        }
    }
    let [tcp, ws, wss] = rates.try_into().ok().context("three rates")?;
    eprintln!(
        "TCP {tcp:.0} Mbit/s; WebSocket {ws:.0} ({:.2}); inside TLS {wss:.0} ({:.2})",
        ws / tcp,
        wss / tcp
    );
    ensure!(ws > 0.5 * tcp, "WebSocket {ws:.0} of {tcp:.0} Mbit/s");
    ensure!(wss > 0.5 * tcp, "inside TLS {wss:.0} of {tcp:.0} Mbit/s");
    Ok(())
}
