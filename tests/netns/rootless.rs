//! Podman's plugin without root: called as Podman calls it, in a user and a mount namespace where the daemon's socket is
//! covered, for users that the configuration lists.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::lab::runner::{Case, Skip};
use crate::lab::split::Split;
use crate::lab::{Host, Lab, SOON, binary, text, until};
use crate::netavark::{address, fed, id, workloads};
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(
        a_user_attaches_its_own_containers_and_nothing_else,
        "setpriv",
        "unshare",
        "nsenter"
    ),
    long!(
        a_user_attaches_containers_below_the_rights_of_the_units,
        "setpriv",
        "systemd-socket-activate",
        "unshare",
        "nsenter"
    ),
    long!(
        netavark_itself_drives_the_plugin_without_root,
        "setpriv",
        "unshare",
        "nsenter"
    ),
];

/// A listed user with two workloads, another one that is listed, and one that is not.
pub(crate) const ALICE: u32 = 4_000_001;
pub(crate) const BOB: u32 = 4_000_002;
const CAROL: u32 = 4_000_003;
const LISTED: &str = "4000001=2,4000002";

/// How soon the daemon has noticed that a namespace is gone.
pub(crate) const NOTICED: Duration = Duration::from_secs(8);

/// A user of a host, with the namespaces that its Podman would have made.
pub(crate) struct User {
    host: Rc<Host>,
    pub(crate) uid: String,
    /// Its `XDG_RUNTIME_DIR`.
    dir: PathBuf,
    pub(crate) program: PathBuf,
    /// Keeps the namespaces, as Podman's own process does.
    pub(crate) pause: Child,
    passing: Option<Child>,
    pub(crate) network: Value,
}

impl Drop for User {
    fn drop(&mut self) {
        for child in [Some(&mut self.pause), self.passing.as_mut()]
            .into_iter()
            .flatten()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl User {
    pub(crate) fn new(lab: &Lab, host: &Rc<Host>, uid: u32) -> Result<User> {
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).context("rights")
        };
        open(lab.dir(), 0o755)?;
        let dir = lab.dir().join(format!("user-{uid}"));
        let plugins = lab.dir().join("netavark");
        std::fs::create_dir_all(&plugins)?;
        let program = plugins.join("byway");
        if !program.exists() {
            std::fs::copy(binary(), &program)?;
            open(&program, 0o755)?;
        }
        std::fs::create_dir(&dir)?;
        chown(&dir, Some(uid), Some(uid))?;
        open(&dir, 0o700)?;
        let uid = uid.to_string();
        let hide = host.dir().to_string_lossy().into_owned();
        // What Podman does to /run.
        let script = format!("mount -t tmpfs none {hide} && echo ready && exec sleep 600");
        let words = ["unshare", "--user", "--map-root-user", "--mount"];
        let words = [&as_user(&uid)[..], &words, &["sh", "-c", &script]].concat();
        let mut pause = host
            .ns()
            .command(&words)
            .current_dir("/")
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = [0; 6];
        let out = pause.stdout.as_mut().context("its output")?;
        if std::io::Read::read_exact(out, &mut said).is_err() {
            pause.wait()?;
            bail!(Skip("users may make no user namespaces here".to_owned()));
        }
        let mut user = User {
            host: Rc::clone(host),
            uid,
            dir,
            program,
            pause,
            passing: None,
            network: json!({
                "dns_enabled": true, "driver": "byway", "id": "ab".repeat(32), "internal": false,
                "ipv6_enabled": false, "name": "net", "network_interface": null,
                "options": {"subnet": "lab"}, "ipam_options": null, "subnets": null, "routes": null,
                "network_dns_servers": null,
            }),
        };
        user.pass()?;
        Ok(user)
    }

    /// Starts the user's own socket by hand.
    fn pass(&mut self) -> Result<()> {
        // In the directory of the plugins the program would be the plugin.
        let plugins = self.program.parent().context("the plugins' directory")?;
        let program = plugins.with_file_name("byway-itself");
        if !program.exists() {
            std::fs::copy(&self.program, &program)?;
        }
        let program = program.to_string_lossy().into_owned();
        let words = [&as_user(&self.uid)[..], &[&program, "user-socket"]].concat();
        let mut command = self.host.ns().command(&words);
        command
            .env("BYWAY_SOCKET", self.host.socket())
            .env("XDG_RUNTIME_DIR", &self.dir)
            .current_dir("/");
        self.passing = Some(command.spawn()?);
        let socket = self.dir.join("byway.sock");
        until("the user's socket is there", SOON, || Ok(socket.exists())).map(drop)
    }

    /// A program in the user's namespaces.
    pub(crate) fn inside(&self, words: &[&str], input: &[u8]) -> Result<(i32, String, String)> {
        let pid = self.pause.id().to_string();
        let dir = format!("XDG_RUNTIME_DIR={}", self.dir.display());
        let enter = ["nsenter", "-t", &pid, "-U", "-m", "--preserve-credentials"];
        let all = [&as_user(&self.uid)[..], &enter, &["env", &dir], words].concat();
        fed(&self.host, &all, input)
    }

    pub(crate) fn ok(&self, words: &[&str]) -> Result<String> {
        let (code, out, err) = self.inside(words, b"")?;
        ensure!(code == 0, "{words:?}: {out} {err}");
        Ok(out)
    }

    /// Where a container's namespace is mounted, which only the user sees.
    pub(crate) fn netns(&self, name: &str) -> String {
        self.dir
            .join(format!("netns-{name}"))
            .to_string_lossy()
            .into_owned()
    }

    pub(crate) fn make(&self, name: &str) -> Result<()> {
        let path = self.netns(name);
        self.ok(&[
            "sh",
            "-c",
            &format!("touch {path} && unshare --net={path} true"),
        ])
        .map(drop)
    }

    /// Starts the container's first process.
    pub(crate) fn starts(&self, name: &str) -> Result<Child> {
        let pid = self.pause.id().to_string();
        let net = format!("--net={}", self.netns(name));
        let enter = ["nsenter", "-t", &pid, "-U", "-m", "--preserve-credentials"];
        let words = [
            &as_user(&self.uid)[..],
            &enter,
            &["nsenter", &net, "sleep", "300"],
        ]
        .concat();
        let child = self.host.ns().command(&words).spawn()?;
        let of =
            |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).context("its namespace");
        let inside = child.id().to_string();
        until("it is in its namespace", SOON, || {
            let is = of(&inside)?;
            Ok(is != of(&pid)? && is != of("self")?)
        })?;
        Ok(child)
    }

    pub(crate) fn plugin(&self, words: &[&str], input: &Value) -> Result<(i32, Value)> {
        let program = self.program.to_string_lossy().into_owned();
        let words = [&[program.as_str()], words].concat();
        let (code, out, err) = self.inside(&words, input.to_string().as_bytes())?;
        ensure!(!err.contains("panicked"), "{err}");
        let told = match out.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| format!("it printed {text:?}"))?,
        };
        Ok((code, told))
    }

    pub(crate) fn container(&self, name: &str, ports: &Value) -> Value {
        json!({"container_id": id(name), "container_name": name, "port_mappings": ports, "network": self.network,
            "network_options": {"interface_name": "eth0", "aliases": [], "static_ips": null, "static_mac": null,
                "options": null}})
    }

    pub(crate) fn setup(&self, name: &str, ports: &Value) -> Result<Value> {
        let (code, told) =
            self.plugin(&["setup", &self.netns(name)], &self.container(name, ports))?;
        ensure!(code == 0, "setup of {name}: {told}");
        Ok(told)
    }

    fn refused(&self, name: &str, ports: &Value, part: &str) -> Result<()> {
        let (code, told) =
            self.plugin(&["setup", &self.netns(name)], &self.container(name, ports))?;
        let why = told["error"].as_str().unwrap_or_default();
        ensure!(code == 1 && why.contains(part), "expected {part:?}: {told}");
        Ok(())
    }

    pub(crate) fn teardown(&self, name: &str) -> Result<()> {
        let input = self.container(name, &Value::Null);
        let (code, told) = self.plugin(&["teardown", &self.netns(name)], &input)?;
        ensure!(code == 0, "teardown of {name}: {told}");
        Ok(())
    }

    /// One request at the user's own socket, in the words of the API.
    pub(crate) fn asks(&self, request: &Value) -> Result<Value> {
        let script = "import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); b = sys.argv[2].encode()
s.sendall(b'POST /v1/call HTTP/1.1\\r\\nhost: b\\r\\nconnection: close\\r\\ncontent-length: %d\\r\\n\\r\\n' % len(b) + b)
a = b''
while True:
    p = s.recv(65536)
    if not p: break
    a += p
print(a.split(b'\\r\\n\\r\\n', 1)[1].decode())";
        let socket = self.dir.join("byway.sock");
        let words = [
            "env",
            "PATH=/usr/bin:/bin",
            "python3",
            "-c",
            script,
            &socket.to_string_lossy(),
            &request.to_string(),
        ];
        let (code, out, err) = fed(&self.host, &[&as_user(&self.uid)[..], &words].concat(), b"")?;
        ensure!(code == 0, "{out} {err}");
        serde_json::from_str(&out).with_context(|| format!("it answered {out:?}"))
    }
}

pub(crate) fn as_user(uid: &str) -> [&str; 6] {
    ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"]
}

/// The request by which a plugin attaches what is at a path.
pub(crate) fn attach(netns: &str) -> Value {
    json!({"verb": "attach", "subnet": "lab", "name": null, "ip": null, "mac": null, "workload": {"container":
        {"engine": "netavark", "container": "x", "interface": "eth0", "netns": netns}}})
}

/// What an answer was refused by.
pub(crate) fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or("none")
}

/// Host `a` with these users listed, and host `b` beside it.
pub(crate) fn hosts(lab: &Lab) -> Result<(Rc<Host>, Rc<Host>)> {
    let a = lab.host("a")?;
    a.set_env("BYWAY_WORKLOADS_USERS", LISTED);
    a.start()?;
    a.json(&["create", "lab"])?;
    let b = lab.node("b")?;
    let invite = a.json(&["invite", "create", "lab"])?;
    b.json(&["join", &text(&invite, "invite")?])?;
    Ok((a, b))
}

fn a_user_attaches_its_own_containers_and_nothing_else(lab: &Lab) -> Result<()> {
    let (a, b) = hosts(lab)?;
    let db = lab.workload("db")?;
    b.attach(&db, "lab", "db")?;
    let mut alice = User::new(lab, &a, ALICE)?;
    let (created, network) = alice.plugin(&["create"], &alice.network)?;
    ensure!(created == 0, "{network}");
    alice.network = network;
    for name in ["web", "shop", "third"] {
        alice.make(name)?;
    }
    let none = Value::Null;
    let ports = |port: u16| json!([{"container_port": 80, "host_ip": "", "host_port": port, "protocol": "tcp"}]);
    let told = alice.setup("web", &ports(8080))?;
    let web = address(&told)?;
    // The plugin has ended, and no process is in the namespace yet.
    db.reaches(&web, SOON)?;
    let again = alice.setup("web", &ports(8080))?;
    ensure!(again == told, "{again} is {told}");
    let all = workloads(&a)?;
    ensure!(all.len() == 1 && all[0]["user"] == ALICE, "{all:?}");
    // Its number of workloads, ports that are root's, and users who are not listed.
    alice.setup("shop", &none)?;
    alice.refused("third", &none, "E-QUOTA")?;
    alice.teardown("shop")?;
    alice.refused("shop", &ports(80), "ports from 1024")?;
    ensure!(workloads(&a)?.len() == 1, "nothing half done");
    let bob = User::new(lab, &a, BOB)?;
    let carol = User::new(lab, &a, CAROL)?;
    carol.make("web")?;
    carol.refused("web", &none, "[workloads] users")?;
    // Another user says the same words, and has none of it.
    bob.teardown("web")?;
    ensure!(bob.asks(&json!({"verb": "workload-ls"}))?["workloads"] == json!([]));
    let shown = json!({"verb": "workload-show", "workload": "web"});
    ensure!(code(&bob.asks(&shown)?) == "E-NO-WORKLOAD");
    ensure!(alice.asks(&shown)?["workload"] == "web");
    ensure!(bob.asks(&json!({"verb": "map-ls", "subnet": null}))?["maps"] == json!([]));
    let shown = bob.asks(&json!({"verb": "subnet-show", "subnet": "lab"}))?;
    ensure!(
        shown["members"] == json!([]) && shown["cidr4"].is_string(),
        "{shown}"
    );
    let detach = json!({"verb": "detach", "workload": "web", "subnet": null});
    ensure!(code(&bob.asks(&detach)?) == "E-NO-WORKLOAD");
    let map = json!({"verb": "map-add", "subnet": "lab", "proto": "tcp", "ports": "9000", "target": "web",
        "target_ports": "80", "name": null, "allow": [], "workload": "web"});
    ensure!(code(&bob.asks(&map)?) == "E-PERMISSION");
    for verb in ["config", "id", "peer-ls", "metrics", "reload"] {
        let told = bob.asks(&json!({"verb": verb}))?;
        ensure!(code(&told) == "E-PERMISSION", "{verb}: {told}");
    }
    attacked(&a, &alice, &bob)?;
    lives_on(&a, &alice, &web, &db)?;
    alice.teardown("web")?;
    alice.teardown("web")?;
    ensure!(workloads(&a)?.is_empty() && a.json(&["map", "ls"])?["maps"] == json!([]));
    drop((alice, bob, carol));
    Ok(())
}

/// Names what is not the user's, in every way that a path may have.
fn attacked(host: &Host, alice: &User, bob: &User) -> Result<()> {
    let own = alice.pause.id();
    let foreign = bob.pause.id();
    let daemon = host.pid()?;
    for (path, refusal) in [
        (format!("/proc/{daemon}/ns/net"), "E-PERMISSION"),
        (format!("/proc/{daemon}/ns/mnt"), "E-PERMISSION"),
        (format!("/run/netns/{}", host.ns().name()), "E-PERMISSION"),
        (host.ns().name().to_owned(), "E-PERMISSION"),
        (alice.netns("web"), "E-PERMISSION"),
        (format!("/proc/{own}/fd/1"), "E-PERMISSION"),
        (format!("/proc/{own}/task/{own}/ns/mnt"), "E-PERMISSION"),
        (format!("/proc/{own}/task/{foreign}/ns/net"), "E-NO-NETNS"),
        (format!("/proc/{foreign}/ns/net"), "E-PERMISSION"),
        ("/proc/4194304/task/4194304/ns/net".to_owned(), "E-NO-NETNS"),
    ] {
        let told = alice.asks(&attach(&path))?;
        ensure!(code(&told) == refusal, "{path}: {told}");
    }
    // A namespace of bob's with a process of bob's in it.
    bob.make("his")?;
    let mut child = bob.starts("his")?;
    let path = format!("/proc/{}/ns/net", child.id());
    let told = alice.asks(&attach(&path));
    let his = bob.asks(&attach(&path));
    let detach = json!({"verb": "detach-container", "engine": "netavark", "container": "x", "interface": "eth0"});
    let hers = alice.asks(&detach);
    let ended = bob.asks(&detach);
    // Not before: the daemon would detach it by itself.
    child.kill()?;
    child.wait()?;
    let (told, his) = (told?, his?);
    ensure!(code(&told) == "E-PERMISSION", "bob's own: {told}");
    ensure!(his["workload"].is_string(), "and he may: {his}");
    ensure!(hers?["changed"] == false && ended?["changed"] == true);
    Ok(())
}

/// The container runs on while the daemon is killed and starts anew; where it is killed its workload ends.
fn lives_on(a: &Host, alice: &User, web: &str, db: &crate::lab::netns::Netns) -> Result<()> {
    let mut container = alice.starts("web")?;
    a.kill9()?;
    a.start()?;
    until("it is the same workload", SOON, || {
        let all = workloads(a)?;
        Ok(all.len() == 1 && all[0]["state"] == "ok")
    })?;
    let took = db.reaches(web, NOTICED)?;
    println!("  reached {took:?} after the daemon was started anew");
    a.terminate()?;
    a.start()?;
    db.reaches(web, NOTICED)?;
    // Nobody says that it ended.
    container.kill()?;
    container.wait()?;
    alice.ok(&["umount", &alice.netns("web")])?;
    let took = until("the daemon has noticed", NOTICED, || {
        Ok(workloads(a)?.is_empty())
    })?;
    println!("  noticed its end after {took:?}");
    Ok(())
}

fn a_user_attaches_containers_below_the_rights_of_the_units(lab: &Lab) -> Result<()> {
    let split = Split::new(lab, "a")?;
    let a = Rc::clone(&split.host);
    a.set_env("BYWAY_WORKLOADS_USERS", LISTED);
    split.start_helper_by_its_unit()?;
    split.start()?;
    a.json(&["create", "lab"])?;
    let b = lab.node("b")?;
    let invite = a.json(&["invite", "create", "lab"])?;
    b.json(&["join", &text(&invite, "invite")?])?;
    let db = lab.workload("db")?;
    b.attach(&db, "lab", "db")?;
    let alice = User::new(lab, &a, ALICE)?;
    alice.make("web")?;
    let web = address(&alice.setup("web", &Value::Null)?)?;
    db.reaches(&web, SOON)?;
    let mut container = alice.starts("web")?;
    // Longer than its namespace is kept open.
    std::thread::sleep(Duration::from_secs(6));
    a.kill9()?;
    split.start()?;
    db.reaches(&web, NOTICED)?;
    // The same plugin as root, beside the same daemon.
    let roots = lab.workload("roots")?;
    let mut input = alice.container("roots", &Value::Null);
    input["network"]["options"]["socket"] = json!(a.socket());
    let program = alice.program.to_string_lossy().into_owned();
    let path = format!("/run/netns/{}", roots.name());
    let (code, out, _) = fed(
        &a,
        &[&program, "setup", &path],
        input.to_string().as_bytes(),
    )?;
    ensure!(code == 0, "{out}");
    roots.reaches(&web, SOON)?;
    let (code, out, _) = fed(
        &a,
        &[&program, "teardown", &path],
        input.to_string().as_bytes(),
    )?;
    ensure!(code == 0, "{out}");
    alice.teardown("web")?;
    container.kill()?;
    container.wait()?;
    ensure!(workloads(&a)?.is_empty());
    drop(alice);
    a.terminate()
}

fn netavark_itself_drives_the_plugin_without_root(lab: &Lab) -> Result<()> {
    let version = "1.17.2";
    let netavark = crate::netavark::netavark(version);
    if !netavark.exists() {
        bail!(Skip(format!(
            "no netavark {version}: scripts/deps netavark builds it"
        )));
    }
    let (a, b) = hosts(lab)?;
    let db = lab.workload("db")?;
    b.attach(&db, "lab", "db")?;
    let mut alice = User::new(lab, &a, ALICE)?;
    alice.network = alice.plugin(&["create"], &alice.network)?.1;
    alice.make("web")?;
    let program = lab.dir().join("netavark-itself");
    std::fs::copy(&netavark, &program)?;
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    let config = alice.dir.join("config");
    std::fs::create_dir(&config)?;
    chown(&config, Some(ALICE), Some(ALICE))?;
    let options = json!({"container_id": id("web"), "container_name": "web", "port_mappings": [],
        "networks": {"net": {"interface_name": "eth0"}}, "network_info": {"net": alice.network}});
    let plugins = alice.program.parent().context("its directory")?;
    let run = |verb: &str| -> Result<String> {
        let words = [
            program.to_string_lossy().into_owned(),
            "--config".to_owned(),
            config.to_string_lossy().into_owned(),
            "--rootless".to_owned(),
            "true".to_owned(),
            "--plugin-directory".to_owned(),
            plugins.to_string_lossy().into_owned(),
            verb.to_owned(),
            alice.netns("web"),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (code, out, err) = alice.inside(&words, options.to_string().as_bytes())?;
        ensure!(code == 0, "netavark {verb}: {out} {err}");
        Ok(out)
    };
    let told: Value = serde_json::from_str(&run("setup")?)?;
    db.reaches(&address(&told["net"])?, SOON)?;
    run("teardown")?;
    ensure!(workloads(&a)?.is_empty());
    Ok(())
}
