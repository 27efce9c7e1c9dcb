//! The netavark plugin of Podman: called as netavark calls it, and by netavark itself.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cni::is_as_before;
use crate::lab::runner::{Case, Skip};
use crate::lab::{Host, Lab, Netns, SOON, binary, snapshot, until};
use crate::{ci, fast, long};

pub const CASES: &[Case] = &[
    ci!(podmans_plugin_attaches_a_container_and_lets_it_go),
    fast!(podmans_plugin_tells_what_is_wrong_in_its_own_words),
    long!(netavark_itself_drives_the_plugin),
];

/// The plugin as one host has it.
struct Plugin<'a> {
    host: &'a Host,
    dir: PathBuf,
    /// A network as `create` completed it.
    network: Value,
}

/// How it ended.
#[derive(Debug)]
struct Reply {
    code: i32,
    out: Value,
}

impl Reply {
    /// Checks that it failed by netavark's error, whose text holds `part`.
    fn failed(&self, part: &str) -> Result<()> {
        let told = self.out["error"].as_str().unwrap_or_default();
        let only = self.out.as_object().is_some_and(|all| all.len() == 1);
        ensure!(
            self.code == 1 && only && told.contains(part),
            "expected an error with {part:?}: {self:?}"
        );
        Ok(())
    }

    fn done(self) -> Result<Value> {
        ensure!(self.code == 0, "{self:?}");
        Ok(self.out)
    }
}

/// Runs a program in a host's namespace with something on its standard input.
pub(crate) fn fed(host: &Host, program: &[&str], input: &[u8]) -> Result<(i32, String, String)> {
    let mut child = host
        .ns()
        .command(&[&["timeout", "-k", "2", "60"], program].concat())
        .env_remove("BYWAY_SOCKET")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A program that reads no more than it takes breaks the pipe.
    let _ = child.stdin.take().context("its input")?.write_all(input);
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    Ok((code, text(&output.stdout), text(&output.stderr)))
}

impl Plugin<'_> {
    /// A network `net` over subnet `lab`, as `podman network create -d byway -o subnet=lab net` makes it.
    fn new(host: &Host) -> Result<Plugin<'_>> {
        let dir = host.dir().join("netavark");
        std::fs::create_dir_all(&dir)?;
        if !dir.join("byway").exists() {
            std::os::unix::fs::symlink(binary(), dir.join("byway"))?;
        }
        let network = json!({
            "dns_enabled": true, "driver": "byway", "id": "ab".repeat(32), "internal": false, "ipv6_enabled": false,
            "name": "net", "network_interface": null, "options": {"subnet": "lab", "socket": host.socket()},
            "ipam_options": null, "subnets": null, "routes": null, "network_dns_servers": null,
        });
        let mut plugin = Plugin { host, dir, network };
        plugin.network = plugin.create(json!({}))?.done()?;
        Ok(plugin)
    }

    fn call(&self, arguments: &[&str], input: &[u8]) -> Result<Reply> {
        let program = self.dir.join("byway").to_string_lossy().into_owned();
        let (code, out, err) = fed(self.host, &[&[program.as_str()], arguments].concat(), input)?;
        ensure!(!err.contains("panicked"), "{arguments:?}: {err}");
        let out = match out.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| format!("it printed {text:?}"))?,
        };
        Ok(Reply { code, out })
    }

    /// `create` with something else in the network.
    fn create(&self, more: Value) -> Result<Reply> {
        let mut network = self.network.clone();
        for (key, value) in more.as_object().context("keys")? {
            network[key] = value.clone();
        }
        self.call(&["create"], network.to_string().as_bytes())
    }

    /// What netavark says of a container called `name`.
    fn container(&self, name: &str, more: &Value, ports: &Value) -> Value {
        let mut options = json!({"interface_name": "eth0", "aliases": [&id(name)[..12]], "static_ips": null,
            "static_mac": null, "options": null});
        for (key, value) in more.as_object().into_iter().flatten() {
            options[key] = value.clone();
        }
        json!({"container_id": id(name), "container_name": name, "port_mappings": ports,
            "network": self.network, "network_options": options})
    }

    fn setup(&self, name: &str, netns: &Netns, more: &Value, ports: &Value) -> Result<Reply> {
        let input = self.container(name, more, ports).to_string();
        self.call(&["setup", &path(netns)], input.as_bytes())
    }

    fn teardown(&self, name: &str, netns: &Netns) -> Result<Reply> {
        let input = self.container(name, &json!({}), &Value::Null).to_string();
        self.call(&["teardown", &path(netns)], input.as_bytes())
    }
}

fn path(netns: &Netns) -> String {
    format!("/run/netns/{}", netns.name())
}

/// An ID of 64 digits for a container of that name.
pub(crate) fn id(name: &str) -> String {
    let digits: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    format!("{digits:0<64}")
}

/// The first address of a status block, without its prefix length.
pub(crate) fn address(status: &Value) -> Result<String> {
    let ipnet = status["interfaces"]["eth0"]["subnets"][0]["ipnet"].as_str();
    let (address, _) = ipnet
        .and_then(|text| text.split_once('/'))
        .with_context(|| format!("no address in {status}"))?;
    Ok(address.to_owned())
}

pub(crate) fn workloads(host: &Host) -> Result<Vec<Value>> {
    let all = host.json(&["workload", "ls"])?;
    Ok(all["workloads"].as_array().context("no workloads")?.clone())
}

fn podmans_plugin_attaches_a_container_and_lets_it_go(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let before = snapshot::of(a.ns())?;
    let (at_a, at_b) = (Plugin::new(a)?, Plugin::new(b)?);
    let info = a.json(&["subnet", "show", "lab"])?;
    ensure!(
        at_a.network["subnets"][0]["subnet"] == info["cidr4"]
            && at_a.network["dns_enabled"] == false
            && at_a.network["ipam_options"]["driver"] == "none",
        "{}",
        at_a.network
    );
    let own = info["addresses"][0].as_str().context("its own")?;
    let (net, _) = own.rsplit_once('.').context("an IPv4 address")?;
    let more = json!({"static_ips": [format!("{net}.77")], "static_mac": "02:00:00:00:00:77",
        "aliases": [&id("Web")[..12], "shop"]});
    let ports = json!([{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 2}]);
    let told = at_a.setup("Web", &web, &more, &ports)?.done()?;
    let there = at_b.setup("db", &db, &json!({}), &Value::Null)?.done()?;
    ensure!(
        address(&told)? == format!("{net}.77")
            && told["interfaces"]["eth0"]["mac_address"] == "02:00:00:00:00:77"
            && told["dns_search_domains"] == json!(["lab.internal"]),
        "{told}"
    );
    db.reaches(&address(&told)?, SOON)?;
    web.reaches(&address(&there)?, SOON)?;
    let server = there["dns_server_ips"][0].as_str().context("a server")?;
    db.resolves(server, &["web.lab.internal"], &address(&told)?, SOON)?;
    db.resolves(server, &["shop.lab.internal"], &address(&told)?, SOON)?;
    // Podman's own further name is not told to all members.
    let names = a.ok(&["dns", "ls", "lab"])?;
    ensure!(!names.contains(&id("Web")[..12]), "{names}");
    let _server = web.serve("tcp", "0.0.0.0", 81)?;
    until("the port leads into the container", SOON, || {
        b.ns().tcp(a.under4(), 8081, 100).map(|_| true)
    })?;
    // A second time is the same attachment, with the same ports.
    let maps = a.json(&["map", "ls"])?;
    let again = at_a.setup("Web", &web, &more, &ports)?.done()?;
    let after = a.json(&["map", "ls"])?;
    let count = |maps: &Value| maps["maps"].as_array().map_or(0, Vec::len);
    ensure!(
        again == told && workloads(a)?.len() == 1 && count(&after) == count(&maps),
        "{again} is {told}, {after} is {maps}"
    );
    // Teardown succeeds as often as it is said, with the namespace or without.
    at_a.teardown("Web", &web)?.done()?;
    ensure!(
        !web.ip(&["-o", "link"])?.contains("eth0"),
        "its interface is gone"
    );
    web.delete();
    at_a.teardown("Web", &web)?.done()?;
    ensure!(workloads(a)?.is_empty() && a.json(&["map", "ls"])?["maps"] == json!([]));
    is_as_before(&before, a)?;
    at_b.teardown("db", &db)?.done().map(drop)
}

fn podmans_plugin_tells_what_is_wrong_in_its_own_words(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let before = snapshot::of(a.ns())?;
    let plugin = Plugin::new(&a)?;
    let web = lab.workload("web")?;
    let none = Value::Null;
    // The program of that name elsewhere is not the plugin.
    let told = fed(&a, &[&binary().to_string_lossy(), "info"], b"")?;
    ensure!(told.0 == 2 && !told.1.contains("error\":"), "{told:?}");
    ensure!(plugin.call(&["info"], b"")?.done()?["api_version"] == "1.0.0");
    for input in [&b""[..], b"{", b"[]", b"\xff\xfe", b"{\"name\":7}"] {
        plugin.call(&["create"], input)?.failed("the network")?;
        plugin
            .call(&["setup", &path(&web)], input)?
            .failed("the container")?;
    }
    plugin
        .call(&["setup"], b"{}")?
        .failed("namespace is missing")?;
    plugin.call(&["eat"], b"{}")?.failed("\"eat\"")?;
    let nowhere = json!({"options": {"subnet": "nowhere", "socket": a.socket()}});
    plugin.create(nowhere)?.failed("E-NO-SUBNET")?;
    plugin
        .create(json!({"options": {}}))?
        .failed("-o subnet=NAME")?;
    plugin
        .create(json!({"ipam_options": {"driver": "host-local"}}))?
        .failed("--ipam-driver")?;
    plugin
        .create(json!({"subnets": [{"subnet": "192.0.2.0/24"}]}))?
        .failed("192.0.2.0/24")?;
    let setup = |more: Value, ports: Value| plugin.setup("web", &web, &more, &ports);
    setup(json!({"static_ips": ["192.0.2.9"]}), none.clone())?.failed("192.0.2.9")?;
    setup(json!({"static_mac": "01:00:00:00:00:01"}), none.clone())?.failed("E-MAC")?;
    setup(json!({"interface_name": "eth/0"}), none.clone())?.failed("eth/0")?;
    setup(
        json!({}),
        json!([{"container_port": 80, "host_port": 80, "protocol": "sctp"}]),
    )?
    .failed("sctp")?;
    // What is found only after it was attached takes all of it back.
    let _taken = a.ns().serve("tcp", "0.0.0.0", 8080)?;
    let ports = json!([{"container_port": 80, "host_port": 8080, "protocol": "tcp"}]);
    setup(json!({}), ports)?.failed("E-PORT-IN-USE")?;
    ensure!(workloads(&a)?.is_empty(), "nothing half done");
    let gone = lab.workload("gone")?;
    gone.delete();
    plugin
        .setup("gone", &gone, &json!({}), &none)?
        .failed("E-NO-NETNS")?;
    is_as_before(&before, &a)?;
    // Without a daemon what lives is kept, and what is gone lets go.
    plugin.setup("web", &web, &json!({}), &none)?.done()?;
    a.kill9()?;
    plugin
        .setup("web", &web, &json!({}), &none)?
        .failed("E-DAEMON")?;
    plugin.teardown("web", &web)?.failed("E-DAEMON")?;
    web.delete();
    plugin.teardown("web", &web)?.done()?;
    a.start()?;
    until("what ended meanwhile is freed", SOON, || {
        Ok(workloads(&a)?.is_empty())
    })?;
    Ok(())
}

/// Versions of netavark, as `scripts/deps netavark` builds them.
const VERSIONS: [&str; 2] = ["1.17.2", "2.1.0"];

pub(crate) fn netavark(version: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    );
    target.join("netavark").join(version).join("bin/netavark")
}

fn netavark_itself_drives_the_plugin(lab: &Lab) -> Result<()> {
    for version in VERSIONS {
        if !netavark(version).exists() {
            bail!(Skip(format!(
                "no netavark {version}: scripts/deps netavark builds it"
            )));
        }
    }
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let peer = lab.workload("peer")?;
    let at_b = Plugin::new(b)?;
    let there = at_b
        .setup("peer", &peer, &json!({}), &Value::Null)?
        .done()?;
    let plugin = Plugin::new(a)?;
    for version in VERSIONS {
        let name = format!("web{}", &version[..1]);
        let inside = lab.workload(&name)?;
        let driver = Driver::new(&plugin, version)?;
        let network = driver.network()?;
        let options = json!({"container_id": id(&name), "container_name": name,
            "port_mappings": [{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1}],
            "networks": {"net": {"interface_name": "eth0"}}, "network_info": {"net": network}});
        let told: Value = serde_json::from_str(&driver.run(&["setup", &path(&inside)], &options)?)?;
        let status = &told["net"];
        inside.reaches(&address(&there)?, SOON)?;
        peer.reaches(&address(status)?, SOON)?;
        let server = there["dns_server_ips"][0].as_str().context("a server")?;
        let fqdn = format!("{name}.lab.internal");
        peer.resolves(server, &[&fqdn], &address(status)?, SOON)?;
        let _server = inside.serve("tcp", "0.0.0.0", 80)?;
        until("the port leads into the container", SOON, || {
            b.ns().tcp(a.under4(), 8080, 100).map(|_| true)
        })?;
        driver.run(&["teardown", &path(&inside)], &options)?;
        ensure!(workloads(a)?.is_empty() && !inside.ip(&["-o", "link"])?.contains("eth0"));
        ensure!(
            !a.ns().ip(&["-o", "link"])?.contains("bwv"),
            "no link of ours is left"
        );
        // An error of ours reaches whoever called netavark.
        let mut wrong = options.clone();
        wrong["network_info"]["net"]["options"]["subnet"] = "nowhere".into();
        let refused = driver.run(&["setup", &path(&inside)], &wrong);
        ensure!(
            refused.is_err_and(|why| why.to_string().contains("E-NO-SUBNET")),
            "netavark {version} passes the error on"
        );
    }
    at_b.teardown("peer", &peer)?.done().map(drop)
}

/// One version of netavark on one host.
struct Driver<'a> {
    plugin: &'a Plugin<'a>,
    version: &'a str,
    words: Vec<String>,
}

impl Driver<'_> {
    fn new<'a>(plugin: &'a Plugin<'a>, version: &'a str) -> Result<Driver<'a>> {
        let config = plugin.host.dir().join(format!("netavark-{version}"));
        std::fs::create_dir_all(&config)?;
        let program = netavark(version);
        let words = [
            program.as_path(),
            Path::new("--config"),
            &config,
            Path::new("--plugin-directory"),
            &plugin.dir,
        ];
        let words = words.map(|word| word.to_string_lossy().into_owned());
        Ok(Driver {
            plugin,
            version,
            words: words.into(),
        })
    }

    /// What it prints, where it succeeds.
    fn run(&self, verb: &[&str], input: &Value) -> Result<String> {
        let mut words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        words.extend(verb);
        let (code, out, err) = fed(self.plugin.host, &words, input.to_string().as_bytes())?;
        ensure!(code == 0, "netavark {} {verb:?}: {out} {err}", self.version);
        Ok(out)
    }

    /// The network: from version 2 on netavark makes it, of what Podman was asked for.
    fn network(&self) -> Result<Value> {
        if self.version.starts_with('1') {
            return Ok(self.plugin.network.clone());
        }
        let socket = self.plugin.host.socket();
        let asked = json!({
            "network": {"dns_enabled": true, "driver": "byway", "id": "cd".repeat(32), "internal": false,
                "ipv6_enabled": false, "name": "net", "options": {"subnet": "lab", "socket": socket}},
            "used": {"interfaces": [], "names": {}, "subnets": []},
            "options": {"subnet_pools": [], "default_interface_name": null, "check_used_subnets": true},
        });
        let network: Value = serde_json::from_str(&self.run(&["create"], &asked)?)?;
        let pools = network["subnets"].as_array().map_or(0, Vec::len);
        ensure!(
            pools == 2 && network["ipam_options"]["driver"] == "none",
            "{network}"
        );
        Ok(network)
    }
}
