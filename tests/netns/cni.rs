//! The CNI plugin, called as a container runtime calls it: alone, and in a list with the plugins of the CNI project.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::fast;
use crate::lab::cni::{Container, Network};
use crate::lab::runner::{Case, Skip};
use crate::lab::{Host, Lab, Netns, SOON, snapshot, until};

pub const CASES: &[Case] = &[
    fast!(a_runtime_adds_a_container_and_deletes_it),
    fast!(a_runtime_asks_for_address_ports_and_names),
    fast!(a_runtime_that_is_wrong_is_told_so),
    fast!(twenty_containers_are_added_at_once),
    fast!(what_a_runtime_forgot_is_freed),
    fast!(a_runtime_goes_on_without_the_daemon),
    fast!(plugins_of_others_stand_around_ours, "iptables"),
];

const NOTHING: Value = Value::Null;

/// The first IPv4 address of a result, without its prefix length.
fn v4(result: &Value) -> Result<String> {
    let all = result["ips"].as_array().context("no ips")?;
    let texts = all
        .iter()
        .filter_map(|ip| ip["address"].as_str()?.split('/').next());
    let first = texts
        .into_iter()
        .find(|a| a.parse().is_ok_and(|a: IpAddr| a.is_ipv4()));
    Ok(first
        .with_context(|| format!("no IPv4 address in {result}"))?
        .to_owned())
}

/// Waits until a machine is as it was.
pub fn is_as_before(before: &snapshot::Snapshot, host: &Host) -> Result<()> {
    let same = until("nothing is left", SOON, || {
        Ok(snapshot::of(host.ns())? == *before)
    });
    let named = |error: anyhow::Error| match snapshot::of(host.ns()) {
        Ok(now) => before.assert_same(&now, host.name()).err().unwrap_or(error),
        Err(_) => error,
    };
    same.map(drop).map_err(named)
}

/// The same after a kill, which gives the subnet's own link another number.
fn no_link_is_left(host: &Host) -> Result<()> {
    until("no veth pair is left", SOON, || {
        Ok(!host
            .ns()
            .ip(&["-o", "link", "show", "type", "veth"])?
            .contains("bwv"))
    })?;
    Ok(())
}

fn workloads(host: &Host) -> Result<Vec<Value>> {
    let all = host.json(&["workload", "ls"])?;
    Ok(all["workloads"].as_array().context("no workloads")?.clone())
}

fn a_runtime_adds_a_container_and_deletes_it(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let before = snapshot::of(a.ns())?;
    let at_a = Network::new(a, "net", json!({}))?;
    let at_b = Network::new(b, "net", json!({}))?;
    let mut first = Container::of("Web.1_A", &web);
    first.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0".to_owned();
    let second = Container::of("0f1e2d3c4b5a69788796a5b4c3d2e1f0", &db);
    let result = at_a.add(&first, &NOTHING)?;
    ensure!(
        result["cniVersion"] == "1.1.0"
            && result["interfaces"][1]["name"] == "eth0"
            && result["interfaces"][1]["sandbox"] == first.netns
            && result["ips"][0]["interface"] == 1
            && result["dns"]["search"][0] == "lab.internal",
        "{result}"
    );
    // What is told is what there is.
    for (ns, at) in [(a.ns(), 0), (&web, 1)] {
        let end = &result["interfaces"][at];
        let name = end["name"].as_str().context("a name")?;
        let link: Value = serde_json::from_str(&ns.ip(&["-j", "link", "show", "dev", name])?)?;
        ensure!(
            link[0]["address"] == end["mac"] && link[0]["mtu"] == end["mtu"],
            "{end} is {link}"
        );
    }
    // The other host speaks an older version.
    let mut older = at_b;
    older.version = "0.3.1";
    let told = older.add(&second, &NOTHING)?;
    ensure!(
        told["ips"][0]["version"] == "4" && told["cniVersion"] == "0.3.1",
        "{told}"
    );
    let (here, there) = (v4(&result)?, v4(&told)?);
    web.reaches(&there, SOON)?;
    db.reaches(&here, SOON)?;
    let server = told["dns"]["nameservers"][0]
        .as_str()
        .context("a nameserver")?;
    db.resolves(server, &["web-0.lab.internal"], &here, SOON)?;
    db.resolves(server, &["0f1e2d3c4b5a.lab.internal"], &there, SOON)?;
    let checked = at_a.end("CHECK", &first, &NOTHING, &result)?;
    ensure!(checked.code == 0 && checked.out.is_null(), "{checked:?}");
    at_a.try_add(&first, &NOTHING)?.failed(106, "ADD twice")?;
    let mut other = first.clone();
    other.ifname = "eth1".to_owned();
    at_a.try_add(&other, &NOTHING)?.failed(106, "E-ATTACHED")?;
    ensure!(workloads(a)?.len() == 1, "and the first is as it was");
    // DEL is the same as often as it is said, with a namespace or without.
    for netns in [first.netns.clone(), String::new()] {
        let gone = Container {
            netns,
            ..first.clone()
        };
        at_a.del(&gone)?;
    }
    at_a.end("CHECK", &first, &NOTHING, &result)?
        .failed(109, "not attached")?;
    ensure!(
        !web.ip(&["-o", "link", "show"])?.contains("eth0"),
        "its interface is gone"
    );
    is_as_before(&before, a)?;
    older.del(&second)
}

fn a_runtime_asks_for_address_ports_and_names(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let before = snapshot::of(a.ns())?;
    let all = json!({"portMappings": true, "ips": true, "mac": true, "aliases": true, "dns": true});
    let net = Network::new(a, "net", json!({"capabilities": all}))?;
    let (inside, more) = (lab.workload("web")?, lab.workload("more")?);
    let (web, more_of) = (Container::of("web", &inside), Container::of("more", &more));
    let own4 = a.json(&["subnet", "show", "lab"])?["addresses"][0]
        .as_str()
        .context("its own")?
        .to_owned();
    let wanted = own4
        .rsplit_once('.')
        .map(|(net, _)| format!("{net}.77"))
        .context("an address")?;
    let capabilities = json!({
        "ips": [format!("{wanted}/16")],
        "mac": "02:00:00:00:00:77",
        "aliases": ["db", "DB-main"],
        "dns": {"searches": ["corp.example"]},
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5300, "containerPort": 53, "protocol": "UDP", "hostIP": a.under4()},
        ],
    });
    let result = net.add(&web, &capabilities)?;
    ensure!(
        v4(&result)? == wanted
            && result["interfaces"][1]["mac"] == "02:00:00:00:00:77"
            && result["dns"]["search"] == json!(["corp.example"])
            && result["dns"]["domain"] == "lab.internal",
        "{result}"
    );
    let _tcp = inside.serve("tcp", "0.0.0.0", 80)?;
    let _udp = inside.serve("udp", "0.0.0.0", 53)?;
    until("the port leads into the container", SOON, || {
        b.ns().tcp(a.under4(), 8080, 100).map(|_| true)
    })?;
    b.ns().udp(a.under4(), 5300, 100)?;
    // A second container shares one of the names.
    let second = net.add(&more_of, &json!({"aliases": ["db"]}))?;
    let server = b.json(&["subnet", "show", "lab"])?["addresses"][0]
        .as_str()
        .context("its own")?
        .to_owned();
    b.ns()
        .resolves(&server, &["db-main.lab.internal"], &wanted, SOON)?;
    until("the shared name has both", SOON, || {
        let dig = b.ns().dig(&server, &["db.lab.internal"])?;
        Ok(dig.answers.contains(&wanted) && dig.answers.contains(&v4(&second)?))
    })?;
    let checked = net.end("CHECK", &web, &capabilities, &result)?;
    ensure!(checked.code == 0, "{checked:?}");
    // What is taken is refused, and nothing half done is left.
    let third = lab.workload("third")?;
    let third = Container::of("third", &third);
    let port = json!({"aliases": ["x"], "portMappings": [
        {"hostPort": 8081, "containerPort": 80}, {"hostPort": 8080, "containerPort": 80}]});
    net.try_add(&third, &port)?.failed(106, "E-PORT-TAKEN")?;
    net.try_add(&third, &json!({"ips": [wanted]}))?
        .failed(106, "E-ADDRESS-TAKEN")?;
    net.try_add(&third, &json!({"ips": ["10.1.1.1", "10.1.1.2"]}))?
        .failed(7, "one address of a family")?;
    net.try_add(&third, &json!({"mac": "01:00:00:00:00:01"}))?
        .failed(7, "E-MAC")?;
    let sctp = json!({"portMappings": [{"hostPort": 9, "containerPort": 9, "protocol": "sctp"}]});
    net.try_add(&third, &sctp)?.failed(2, "sctp")?;
    ensure!(workloads(a)?.len() == 2);
    let maps = a.json(&["map", "ls"])?;
    ensure!(
        maps["maps"].as_array().is_some_and(|maps| maps.len() == 3),
        "{maps}"
    );
    // One of its maps is gone: CHECK sees it. Everything goes with DEL, and what others share stays.
    a.ok(&["map", "rm", "lab", "udp", &format!("{}:5300", a.under4())])?;
    net.end("CHECK", &web, &capabilities, &result)?
        .failed(109, "port 5300")?;
    net.del(&web)?;
    ensure!(a.json(&["map", "ls"])?["maps"] == json!([]));
    until("the names are withdrawn", SOON, || {
        let dig = b.ns().dig(&server, &["db.lab.internal"])?;
        let gone = b.ns().dig(&server, &["db-main.lab.internal"])?;
        Ok(dig.answers == [v4(&second)?] && gone.status == "NXDOMAIN")
    })?;
    net.del(&more_of)?;
    is_as_before(&before, a)?;
    Ok(())
}

fn a_runtime_that_is_wrong_is_told_so(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let before = snapshot::of(a.ns())?;
    let net = Network::new(&a, "net", json!({}))?;
    let web = lab.workload("web")?;
    let of = Container::of("web", &web);
    let add = |more: &[(&str, &str)], input: &[u8]| {
        let netns = of.netns.clone();
        let mut all = vec![
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "web"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", netns.as_str()),
        ];
        all.extend_from_slice(more);
        net.run("byway-cni", &all, input)
    };
    let config =
        json!({"cniVersion": "1.1.0", "name": "net", "subnet": "lab", "socket": a.socket()});
    let fine = config.to_string();
    add(&[], b"\x00garbage")?.failed(6, "configuration")?;
    let huge = [b"{\"x\":\"".as_slice(), &vec![b'a'; 2 << 20], b"\"}"].concat();
    add(&[], &huge)?.failed(5, "more than 1048576 bytes")?;
    add(&[("CNI_COMMAND", "")], fine.as_bytes())?.failed(4, "CNI_COMMAND")?;
    add(&[("CNI_COMMAND", "EAT")], fine.as_bytes())?.failed(4, "EAT")?;
    add(&[("CNI_IFNAME", "")], fine.as_bytes())?.failed(4, "CNI_IFNAME")?;
    add(&[("CNI_IFNAME", "much-too-long-name")], fine.as_bytes())?.failed(4, "CNI_IFNAME")?;
    add(&[("CNI_IFNAME", "lo")], fine.as_bytes())?.failed(7, "E-INTERFACE")?;
    add(&[("CNI_CONTAINERID", "../etc")], fine.as_bytes())?.failed(4, "CNI_CONTAINERID")?;
    add(&[("CNI_NETNS", "/run/netns/none")], fine.as_bytes())?.failed(3, "E-NO-NETNS")?;
    add(&[("CNI_NETNS", "/etc/passwd")], fine.as_bytes())?.failed(3, "E-NO-NETNS")?;
    let other = |more: Value| {
        let mut config = config.clone();
        for (key, value) in more.as_object().context("keys")? {
            config[key] = value.clone();
        }
        add(&[], config.to_string().as_bytes())
    };
    other(json!({"subnet": "nowhere"}))?.failed(7, "E-NO-SUBNET")?;
    other(json!({"subnet": null}))?.failed(7, "subnet is missing")?;
    other(json!({"cniVersion": "0.2.0"}))?.failed(1, "0.2.0")?;
    other(json!({"ipam": {"type": "host-local"}}))?.failed(7, "host-local")?;
    other(json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1}}}))?.failed(2, "bandwidth")?;
    other(json!({"prevResult": {"ips": []}}))?.failed(7, "another plugin")?;
    // A link of that name that is somebody's own.
    web.ip(&[
        "link", "add", "eth0", "type", "veth", "peer", "name", "eth1",
    ])?;
    add(&[], fine.as_bytes())?.failed(101, "E-KERNEL")?;
    web.ip(&["link", "del", "eth0"])?;
    ensure!(workloads(&a)?.is_empty(), "nothing half done");
    let told = net.run(
        "byway-cni",
        &[("CNI_COMMAND", "VERSION")],
        b"{\"cniVersion\":\"0.4.0\"}",
    )?;
    let supported = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    ensure!(
        told.code == 0
            && told.out == json!({"cniVersion": "0.4.0", "supportedVersions": supported}),
        "{told:?}"
    );
    is_as_before(&before, &a)?;
    Ok(())
}

/// Does the same for every container at once.
fn at_once<T: Send>(
    all: &[Container],
    act: impl Fn(&Container) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let started: Vec<_> = all.iter().map(|of| scope.spawn(|| act(of))).collect();
        let ended = started.into_iter().map(|thread| thread.join());
        ended
            .map(|done| done.map_err(|_| anyhow::anyhow!("a thread panicked"))?)
            .collect()
    })
}

fn twenty_containers_are_added_at_once(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let before = snapshot::of(a.ns())?;
    let net = Network::new(&a, "net", json!({"capabilities": {"portMappings": true}}))?;
    let spaces = (0..20)
        .map(|n| lab.workload(&format!("c{n}")))
        .collect::<Result<Vec<_>>>()?;
    let all: Vec<Container> = spaces
        .iter()
        .enumerate()
        .map(|(n, ns)| Container::of(&format!("c{n}"), ns))
        .collect();
    let port = |of: &Container| {
        let number: u16 = of.id.trim_start_matches('c').parse().unwrap_or_default();
        json!({"portMappings": [{"hostPort": 8000 + number, "containerPort": 80}]})
    };
    let start = std::time::Instant::now();
    let results = at_once(&all, |of| net.add(of, &port(of)))?;
    println!("20 ADD at once: {:.1} s", start.elapsed().as_secs_f64());
    let mut addresses = results.iter().map(v4).collect::<Result<Vec<_>>>()?;
    spaces[0].reaches(&addresses[19], SOON)?;
    addresses.sort();
    addresses.dedup();
    ensure!(
        addresses.len() == 20 && workloads(&a)?.len() == 20,
        "{addresses:?}"
    );
    at_once(&all, |of| net.del(of))?;
    ensure!(workloads(&a)?.is_empty() && a.json(&["map", "ls"])?["maps"] == json!([]));
    is_as_before(&before, &a)?;
    // The daemon is killed in between: some fail, and DEL ends whatever there is.
    let all = &all[..8];
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| at_once(all, |of| net.try_add(of, &port(of))));
        std::thread::sleep(std::time::Duration::from_millis(150));
        a.kill9()?;
        let replies = adding
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        let wrong = replies
            .iter()
            .find(|r| r.code != 0 && r.out["code"].as_u64().is_none());
        ensure!(wrong.is_none(), "an error is told as one: {wrong:?}");
        ensure!(
            replies.iter().any(|r| r.code != 0),
            "the kill came too late: {replies:?}"
        );
        Ok(())
    })?;
    a.start()?;
    at_once(all, |of| net.del(of))?;
    ensure!(workloads(&a)?.is_empty() && a.json(&["map", "ls"])?["maps"] == json!([]));
    no_link_is_left(&a)?;
    Ok(())
}

fn what_a_runtime_forgot_is_freed(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let before = snapshot::of(a.ns())?;
    let all = json!({"portMappings": true, "aliases": true});
    let net = Network::new(&a, "net", json!({"capabilities": all}))?;
    let other = Network::new(&a, "other", json!({}))?;
    let spaces = ["one", "two", "three"].map(|name| lab.workload(name));
    let [one, two, three] = spaces;
    let (one, two, three) = (one?, two?, three?);
    let of = |id, ns: &Netns| Container::of(id, ns);
    let wanted =
        json!({"aliases": ["db"], "portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    net.add(&of("one", &one), &wanted)?;
    net.add(&of("two", &two), &NOTHING)?;
    other.add(&of("three", &three), &NOTHING)?;
    // What is still used stays, of this network and of others.
    net.ours("GC", &NOTHING)?.failed(7, "valid-attachments")?;
    let valid = json!({"cni.dev/valid-attachments": [
        {"containerID": "one", "ifname": "eth0"}, {"containerID": "two", "ifname": "eth1"}]});
    let collected = net.ours("GC", &valid)?;
    ensure!(
        collected.code == 0 && collected.out.is_null(),
        "{collected:?}"
    );
    let left = |a: &Host| -> Result<Vec<String>> {
        let name = |w: &Value| w["workload"].as_str().unwrap_or_default().to_owned();
        let mut names: Vec<_> = workloads(a)?.iter().map(name).collect();
        names.sort();
        Ok(names)
    };
    ensure!(left(&a)? == ["one", "three"], "{:?}", left(&a)?);
    let old = other.ours("GC", &json!({"cni.dev/attachments": []}))?;
    ensure!(old.code == 0 && left(&a)? == ["one"], "{old:?}");
    // A namespace that is gone without DEL: its lease, its map and its names are free again.
    one.delete();
    until("what belonged to it is freed", SOON, || {
        Ok(workloads(&a)?.is_empty()
            && a.json(&["map", "ls"])?["maps"] == json!([])
            && !a.ok(&["dns", "ls", "lab"])?.contains("db.lab.internal"))
    })?;
    net.del(&of("one", &one))?;
    is_as_before(&before, &a)?;
    Ok(())
}

fn a_runtime_goes_on_without_the_daemon(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let net = Network::new(&a, "net", json!({}))?;
    let nowhere = Network::new(&a, "net", json!({"subnet": "nowhere"}))?;
    let status = net.ours("STATUS", &NOTHING)?;
    ensure!(status.code == 0 && status.out.is_null(), "{status:?}");
    nowhere.ours("STATUS", &NOTHING)?.failed(50, "nowhere")?;
    let mut old = Network::new(&a, "net", json!({}))?;
    old.version = "1.0.0";
    old.ours("STATUS", &NOTHING)?.failed(1, "STATUS")?;
    let spaces = ["stays", "goes", "never"].map(|name| lab.workload(name));
    let [stays, goes, never] = spaces;
    let (stays, goes, never) = (stays?, goes?, never?);
    let (stays_of, goes_of) = (Container::of("stays", &stays), Container::of("goes", &goes));
    net.add(&stays_of, &NOTHING)?;
    net.add(&goes_of, &NOTHING)?;
    a.ok(&["down", "lab"])?;
    net.ours("STATUS", &NOTHING)?.failed(51, "is down")?;
    let never_of = Container::of("never", &never);
    net.try_add(&never_of, &NOTHING)?.failed(11, "is down")?;
    a.ok(&["up", "lab"])?;
    ensure!(
        workloads(&a)?.len() == 2,
        "what could have no interface is not attached"
    );
    a.kill9()?;
    net.ours("STATUS", &NOTHING)?.failed(51, "E-DAEMON")?;
    net.try_add(&never_of, &NOTHING)?.failed(11, "E-DAEMON")?;
    // Its interface is still there: the runtime has to come again.
    let kept = net.end("DEL", &stays_of, &NOTHING, &NOTHING)?;
    kept.failed(11, "E-DAEMON")?;
    // Nothing of ours is in these.
    net.del(&never_of)?;
    goes.delete();
    net.del(&goes_of)?;
    a.start()?;
    until("what went meanwhile is freed", SOON, || {
        Ok(workloads(&a)?.len() == 1)
    })?;
    net.del(&stays_of)?;
    no_link_is_left(&a)?;
    Ok(())
}

fn plugins_of_others_stand_around_ours(lab: &Lab) -> Result<()> {
    for plugin in ["portmap", "bandwidth", "bridge", "host-local"] {
        if !std::path::Path::new(crate::lab::cni::PLUGINS)
            .join(plugin)
            .exists()
        {
            anyhow::bail!(Skip(format!(
                "no {plugin}: containernetworking-plugins is not installed"
            )));
        }
    }
    let a = lab.host("a")?;
    // As every machine has it whose containers are published by those plugins.
    a.ns().ok(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    a.rebase()?;
    a.start()?;
    let b = lab.node("b")?;
    let made = a.json(&["create", "lab"])?;
    b.json(&["join", &crate::lab::text(&made, "invite")?])?;
    let (a, b) = (&a, &b);
    let (web, both) = (lab.workload("web")?, lab.workload("both")?);
    // Behind ours: the ports and the limits of the CNI project's own plugins.
    let mut net = Network::new(a, "net", json!({}))?
        .with(
            json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
            false,
        )
        .with(
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
            false,
        );
    net.version = "1.0.0";
    let of = Container::of("web", &web);
    let wanted = json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000},
    });
    let result = net.add(&of, &wanted)?;
    let host_end = result["interfaces"][0]["name"]
        .as_str()
        .context("the host's end")?
        .to_owned();
    let limits = a.ns().ok(&["tc", "qdisc", "show", "dev", &host_end])?;
    ensure!(
        limits.contains("tbf") && limits.contains("ingress"),
        "{limits}"
    );
    let _server = web.serve("tcp", "0.0.0.0", 80)?;
    until("portmap leads into the container", SOON, || {
        b.ns().tcp(a.under4(), 8080, 100).map(|_| true)
    })?;
    // CHECK of ours alone: portmap of this age looks for the IPv4 rules among those of IPv6.
    let ours = Network::new(a, "net", json!({}))?;
    let checked = ours.end("CHECK", &of, &NOTHING, &result)?;
    ensure!(checked.code == 0, "{checked:?}");
    let ended = net.end("DEL", &of, &wanted, &result)?;
    ensure!(ended.code == 0, "{ended:?}");
    // Before ours: a bridge of the machine's own, and our interface beside it.
    let data = a.dir().join("host-local");
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
        "ipam": {"type": "host-local", "dataDir": data, "ranges": [[{"subnet": "10.200.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}});
    let mut net = Network::new(a, "two", json!({"interface": "byway0"}))?.with(bridge, true);
    net.version = "1.0.0";
    let of = Container::of("both", &both);
    let result = net.add(&of, &NOTHING)?;
    let all = both.ip(&["-o", "addr"])?;
    ensure!(all.contains("eth0") && all.contains("byway0"), "{all}");
    let peer = b.json(&["subnet", "show", "lab"])?["addresses"][0]
        .as_str()
        .context("its own")?
        .to_owned();
    both.reaches(&peer, SOON)?;
    both.reaches("10.200.0.1", SOON)?;
    ensure!(
        result["ips"].as_array().is_some_and(|ips| ips.len() >= 2),
        "{result}"
    );
    // And a bridge of this age takes every address of the result for its own.
    let ours = Network::new(a, "two", json!({"interface": "byway0"}))?;
    let checked = ours.end("CHECK", &of, &NOTHING, &result)?;
    ensure!(checked.code == 0, "{checked:?}");
    let ended = net.end("DEL", &of, &NOTHING, &result)?;
    ensure!(ended.code == 0, "{ended:?}");
    ensure!(workloads(a)?.is_empty());
    a.terminate()?;
    ensure!(!a.ns().ruleset()?.contains("byway"), "ours are gone");
    // The bridge and the chains of the other plugins stay, as they do with every runtime.
    let cleared = [
        "ip link del cni0",
        "iptables -t nat -F",
        "iptables -t nat -X",
        "iptables -F",
        "iptables -X",
    ];
    for line in cleared {
        let _ = a.ns().run(&["sh", "-c", line])?;
    }
    a.rebase()
}
