//! What listed users may try against the daemon and each other, beyond naming what is not theirs.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::lab::runner::{Case, Skip};
use crate::lab::{Host, Lab, SOON, until};
use crate::netavark::workloads;
use crate::rootless::{ALICE, BOB, NOTICED, User, as_user, attach, code, hosts};
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(
        a_plugin_that_is_killed_at_any_step_leaves_nothing,
        "setpriv",
        "unshare",
        "nsenter",
        "strace"
    ),
    long!(
        what_a_killed_plugin_attached_ends_without_a_teardown,
        "setpriv",
        "unshare",
        "nsenter",
        "strace"
    ),
    long!(
        ten_thousand_setups_take_one_users_share,
        "setpriv",
        "unshare",
        "nsenter"
    ),
    long!(
        user_namespaces_within_and_reused_numbers_lead_to_nobody_elses,
        "setpriv",
        "unshare",
        "nsenter"
    ),
];

/// The calls before which the plugin is killed: each kind, and how often it is made by one thread at most.
const STEPS: [(&str, usize); 5] = [
    ("setns", 1),
    ("connect", 4),
    ("writev", 4),
    ("recvfrom", 4),
    ("exit_group", 1),
];

fn published() -> Value {
    json!([{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp"}])
}

/// Sets a container up and kills the plugin before its `nth` call of a kind; whether it came to that.
fn killed_before(user: &User, name: &str, call: &str, nth: usize) -> Result<bool> {
    let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
    let trace = format!("trace={call}");
    let program = user.program.to_string_lossy().into_owned();
    let netns = user.netns(name);
    let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace];
    let words = [&words[..], &["-e", &inject, &program, "setup", &netns]].concat();
    let input = user.container(name, &published()).to_string();
    let (code, out, err) = user.inside(&words, input.as_bytes())?;
    if err.contains("ptrace") {
        bail!(Skip("strace may not trace here".to_owned()));
    }
    ensure!(code != 1, "it was refused: {out} {err}");
    Ok(code != 0)
}

/// The links in a container's namespace.
fn links(user: &User, name: &str) -> Result<usize> {
    let net = format!("--net={}", user.netns(name));
    let told = user.ok(&["nsenter", &net, "ip", "-o", "link"])?;
    Ok(told.lines().count())
}

fn nothing_is_left(host: &Host) -> Result<bool> {
    Ok(workloads(host)?.is_empty() && host.json(&["map", "ls"])?["maps"] == json!([]))
}

fn a_plugin_that_is_killed_at_any_step_leaves_nothing(lab: &Lab) -> Result<()> {
    let (a, _b) = hosts(lab)?;
    let mut alice = User::new(lab, &a, ALICE)?;
    alice.network = alice.plugin(&["create"], &alice.network)?.1;
    alice.make("web")?;
    let (mut kills, mut attached) = (0, 0);
    for (call, most) in STEPS {
        for nth in 1..=most {
            if !killed_before(&alice, "web", call, nth)? {
                // It makes fewer of these calls: what it set up is torn down as well.
                alice.teardown("web")?;
                break;
            }
            kills += 1;
            attached += usize::from(!workloads(&a)?.is_empty());
            // What netavark does next.
            alice.teardown("web")?;
            let at = format!("nothing is left after a kill before {call} {nth}");
            until(&at, SOON, || {
                Ok(nothing_is_left(&a)? && links(&alice, "web")? == 1)
            })?;
        }
    }
    println!("  killed {kills} times, {attached} of them after it was attached");
    ensure!(kills >= 6 && attached >= 2, "{kills} {attached}");
    alice.setup("web", &published())?;
    alice.teardown("web")?;
    ensure!(nothing_is_left(&a)?);
    Ok(())
}

fn what_a_killed_plugin_attached_ends_without_a_teardown(lab: &Lab) -> Result<()> {
    let (a, _b) = hosts(lab)?;
    let mut alice = User::new(lab, &a, ALICE)?;
    alice.network = alice.plugin(&["create"], &alice.network)?.1;
    alice.make("web")?;
    ensure!(killed_before(&alice, "web", "exit_group", 1)?);
    ensure!(workloads(&a)?.len() == 1);
    // Podman is gone as well: nobody starts the container, and its namespace stays where only the user sees it.
    let took = until("it has ended", Duration::from_secs(75), || {
        nothing_is_left(&a)
    })?;
    println!("  ended {took:?} after its plugin was killed");
    ensure!(links(&alice, "web")? == 1, "its interface is gone too");
    alice.setup("web", &published())?;
    alice.teardown("web")
}

/// Asks as often as told to attach, every 40th time from a new namespace; prints how often each code was answered.
const ASKS: &str = "import ctypes, json, os, socket, sys
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
libc, told = ctypes.CDLL(None, use_errno=True), {}
for i in range(first, first + count):
    if i % 40 == 0 and libc.unshare(0x40000000):
        sys.exit('unshare: %d' % ctypes.get_errno())
    pid = os.getpid()
    of = {'engine': 'netavark', 'container': 'c%d' % i, 'interface': 'eth0', 'netns': '/proc/%d/task/%d/ns/net' % (pid, pid)}
    b = json.dumps({'verb': 'attach', 'subnet': 'lab', 'name': None, 'ip': None, 'mac': None, 'workload': {'container': of}}).encode()
    s = socket.socket(socket.AF_UNIX); s.connect(path)
    s.sendall(b'POST /v1/call HTTP/1.1\\r\\nhost: b\\r\\nconnection: close\\r\\ncontent-length: %d\\r\\n\\r\\n' % len(b) + b)
    a = b''
    while True:
        p = s.recv(65536)
        if not p: break
        a += p
    s.close()
    a = json.loads(a.split(b'\\r\\n\\r\\n', 1)[1])
    code = a.get('error', {}).get('code', 'none')
    told[code] = told.get(code, 0) + 1
print(json.dumps(told))";

/// Open files of a process, and how many of these are network namespaces.
fn open_files(pid: i32) -> Result<(usize, usize)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let (mut all, mut namespaces) = (0, 0);
    for link in links {
        all += 1;
        namespaces += usize::from(link.to_string_lossy().starts_with("net:["));
    }
    Ok((all, namespaces))
}

fn ten_thousand_setups_take_one_users_share(lab: &Lab) -> Result<()> {
    let (a, _b) = hosts(lab)?;
    let mut alice = User::new(lab, &a, ALICE)?;
    alice.network = alice.plugin(&["create"], &alice.network)?.1;
    let mut containers = vec![];
    for name in ["web", "shop"] {
        alice.make(name)?;
        alice.setup(name, &Value::Null)?;
        containers.push(alice.starts(name)?);
    }
    let bob = User::new(lab, &a, BOB)?;
    bob.make("his")?;
    let (before, _) = open_files(a.pid()?)?;
    let socket = alice
        .ok(&["sh", "-c", "echo $XDG_RUNTIME_DIR/byway.sock"])?
        .trim()
        .to_owned();
    let (mut refused, mut most) = (0, 0);
    for first in (0..10_000).step_by(1000) {
        let words = [
            "env",
            "PATH=/usr/bin:/bin",
            "python3",
            "-c",
            ASKS,
            &socket,
            &first.to_string(),
            "1000",
        ];
        let told: Value = serde_json::from_str(alice.ok(&words)?.trim())?;
        refused += told["E-QUOTA"].as_u64().unwrap_or_default();
        let only = told.as_object().is_some_and(|codes| codes.len() == 1);
        ensure!(only, "all are refused for one reason: {told}");
        most = most.max(open_files(a.pid()?)?.1);
        if first == 5000 {
            // Another user's is not let go for these.
            bob.setup("his", &Value::Null)?;
        }
    }
    println!("  {refused} refused, {most} namespaces open at most");
    ensure!(refused == 10_000 && most <= 64 + 8, "{refused} {most}");
    let mut his = bob.starts("his")?;
    ensure!(workloads(&a)?.len() == 3, "each has what it had");
    let settled = |(all, _): (usize, usize)| all <= before + 16;
    until("all are let go", Duration::from_secs(75), || {
        Ok(settled(open_files(a.pid()?)?))
    })?;
    bob.teardown("his")?;
    his.kill()?;
    his.wait()?;
    for mut container in containers {
        container.kill()?;
        container.wait()?;
    }
    until("the daemon has noticed", NOTICED, || nothing_is_left(&a)).map(drop)
}

/// A process in a network namespace and a user namespace of its own, made by `before`.
fn nested(host: &Host, before: &[&str]) -> Result<Child> {
    let make = [
        "unshare",
        "--user",
        "--net",
        "sh",
        "-c",
        "echo r && exec sleep 300",
    ];
    let words = [before, &make].concat();
    let mut child = host
        .ns()
        .command(&words)
        .current_dir("/")
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.as_mut().context("its output")?;
    out.read_exact(&mut [0; 2])
        .context("a namespace in a namespace")?;
    Ok(child)
}

/// A user namespace of a user's in which other users are, as `newuidmap` makes it for subordinate users.
fn with_subordinates(host: &Host, user: &User) -> Result<Child> {
    let words = ["unshare", "--user", "sh", "-c", "echo r && exec sleep 300"];
    let mut child = host
        .ns()
        .command(&[&as_user(&user.uid)[..], &words].concat())
        .current_dir("/")
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.as_mut().context("its output")?;
    out.read_exact(&mut [0; 2]).context("a user namespace")?;
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{map}", child.id());
        std::fs::write(path, format!("0 {} 1\n1 5000000 100\n", user.uid)).context(map)?;
    }
    Ok(child)
}

/// Starts a process until it has that number, which was another's before.
fn with_number(pid: u32, start: impl Fn() -> Result<Child>) -> Result<Child> {
    for _ in 0..100 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())?;
        let mut child = start()?;
        if child.id() == pid {
            return Ok(child);
        }
        child.kill()?;
        child.wait()?;
    }
    bail!(Skip(
        "no process gets a number that was free before".to_owned()
    ))
}

fn user_namespaces_within_and_reused_numbers_lead_to_nobody_elses(lab: &Lab) -> Result<()> {
    let (a, _b) = hosts(lab)?;
    let alice = User::new(lab, &a, ALICE)?;
    let bob = User::new(lab, &a, BOB)?;
    let pause = alice.pause.id().to_string();
    let enter = ["nsenter", "-t", &pause, "-U", "--preserve-credentials"];
    let inner = nested(&a, &[&as_user(&alice.uid)[..], &enter].concat())?;
    let around = with_subordinates(&a, &alice)?;
    // A user within who is nobody outside: what it makes is alice's, who made the namespace around it.
    let pid = around.id().to_string();
    let enter = ["nsenter", "-t", &pid, "-U", "setpriv", "--reuid", "5"];
    let lower = nested(&a, &[&enter[..], &["--clear-groups"]].concat())?;
    let detach = json!({"verb": "detach-container", "engine": "netavark", "container": "x", "interface": "eth0"});
    for child in [&inner, &lower] {
        let path = format!("/proc/{}/ns/net", child.id());
        let told = bob.asks(&attach(&path))?;
        ensure!(code(&told) == "E-PERMISSION", "not bob's: {told}");
        let told = alice.asks(&attach(&path))?;
        ensure!(told["workload"].is_string(), "alice's own: {told}");
        ensure!(alice.asks(&detach)?["changed"] == true);
    }
    // Root's namespaces within a user namespace of root's are root's.
    let roots = nested(&a, &[])?;
    let told = alice.asks(&attach(&format!("/proc/{}/ns/net", roots.id())))?;
    ensure!(code(&told) == "E-PERMISSION", "root's: {told}");
    for mut child in [inner, lower, around, roots] {
        child.kill()?;
        child.wait()?;
    }
    numbers_are_used_again(&a, &alice, &bob)
}

fn numbers_are_used_again(a: &Host, alice: &User, bob: &User) -> Result<()> {
    alice.make("web")?;
    bob.make("his")?;
    // By its process: once the number is bob's, the workload is gone.
    let mut container = alice.starts("web")?;
    let pid = container.id();
    let told = alice.asks(&attach(&format!("/proc/{pid}/ns/net")))?;
    ensure!(told["workload"].is_string(), "{told}");
    container.kill()?;
    container.wait()?;
    let mut his = with_number(pid, || bob.starts("his"))?;
    let took = until("it is gone", NOTICED, || nothing_is_left(a))?;
    println!("  noticed {took:?} after its number was another's");
    ensure!(links(bob, "his")? == 1, "bob has none of it");
    let told = alice.asks(&attach(&format!("/proc/{pid}/ns/net")))?;
    ensure!(code(&told) == "E-PERMISSION", "{told}");
    his.kill()?;
    his.wait()?;
    // By a thread: while another process is in the namespace, the workload stays whatever the number leads to.
    let mut first = alice.starts("web")?;
    let mut second = alice.starts("web")?;
    let pid = first.id();
    let told = alice.asks(&attach(&format!("/proc/{pid}/task/{pid}/ns/net")))?;
    ensure!(told["workload"].is_string(), "{told}");
    first.kill()?;
    first.wait()?;
    let mut his = with_number(pid, || bob.starts("his"))?;
    // Longer than the namespace is kept open.
    std::thread::sleep(Duration::from_secs(7));
    a.kill9()?;
    a.start()?;
    until("it is the same workload", SOON, || {
        let all = workloads(a)?;
        Ok(all.len() == 1 && all[0]["state"] == "ok")
    })?;
    ensure!(links(bob, "his")? == 1 && links(alice, "web")? == 2);
    for child in [&mut his, &mut second] {
        child.kill()?;
        child.wait()?;
    }
    until("its end is noticed", NOTICED, || nothing_is_left(a)).map(drop)
}
