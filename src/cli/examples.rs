//! What a person may type, verb by verb: shown at the end of each verb's help.

/// Every verb, and three lines of it.
pub(super) const EXAMPLES: &[(&str, [&str; 3])] = &[
    (
        "daemon",
        [
            "byway daemon",
            "byway daemon --state-dir /var/lib/two --socket /run/two.sock",
            "byway daemon --relay-only --state-dir /srv/relay --socket /srv/relay/s",
        ],
    ),
    (
        "create",
        [
            "byway create lab",
            "byway create lab --cidr4 10.80.0.0/16 --host tcp/22",
            "byway create lab --admission open --cidr6 none",
        ],
    ),
    (
        "join",
        [
            "byway join --token-file invite.txt",
            "byway join 7q3km2wd9xra4ce8yn5t0vbz6g --peer vpn.example.org",
            "byway join 7q3km2wd9xra4ce8yn5t0vbz6g --name web1 --timeout 5m",
        ],
    ),
    (
        "leave",
        [
            "byway leave lab",
            "byway leave lab --yes",
            "byway leave 7q3km2wd9xra4ce8yn5t0vbz6g",
        ],
    ),
    (
        "destroy",
        [
            "byway destroy lab",
            "byway destroy lab --yes",
            "byway destroy 7q3km2wd9xra4ce8yn5t0vbz6g",
        ],
    ),
    (
        "subnet ls",
        [
            "byway subnet ls",
            "byway subnet ls --json",
            "byway --socket /run/two.sock subnet ls",
        ],
    ),
    (
        "subnet show",
        [
            "byway subnet show lab",
            "byway subnet show 7q3km2wd9xra4ce8yn5t0vbz6g",
            "byway subnet show lab --json",
        ],
    ),
    (
        "subnet host",
        [
            "byway subnet host lab",
            "byway subnet host lab tcp/22,udp/53",
            "byway subnet host lab closed",
        ],
    ),
    (
        "integration install",
        [
            "byway integration install docker",
            "byway integration install podman",
            "byway integration install cni --conf /etc/cni/net.d/10-lab.conflist --subnet lab",
        ],
    ),
    (
        "import compose",
        [
            "byway import compose docker-compose.yml",
            "byway import compose docker-compose.yml --subnet lab",
            "byway import compose docker-compose.yml --rollback",
        ],
    ),
    (
        "import ls",
        [
            "byway import ls",
            "byway import ls --json",
            "byway --socket /run/two.sock import ls",
        ],
    ),
    (
        "integration remove",
        [
            "byway integration remove docker",
            "byway integration remove cni --dir /opt/cni/bin",
            "byway integration remove podman",
        ],
    ),
    (
        "invite create",
        [
            "byway invite create lab",
            "byway invite create lab --uses 10 --expires 7d",
            "byway invite create lab --role admin --label site=berlin",
        ],
    ),
    (
        "invite ls",
        [
            "byway invite ls",
            "byway invite ls lab",
            "byway invite ls lab --json",
        ],
    ),
    (
        "invite revoke",
        [
            "byway invite revoke 3fa91c07",
            "byway invite revoke lab 3fa91c07",
            "byway invite revoke 3fa91c07 --quiet",
        ],
    ),
    (
        "member ls",
        [
            "byway member ls lab",
            "byway member ls --subnet lab",
            "byway member ls lab --json",
        ],
    ),
    (
        "member requests",
        [
            "byway member requests lab",
            "byway member requests --subnet lab",
            "byway member requests lab --json",
        ],
    ),
    (
        "member approve",
        [
            "byway member approve lab b",
            "byway member approve lab 12D3KooWabcdefgh",
            "byway member approve --subnet lab b",
        ],
    ),
    (
        "member deny",
        [
            "byway member deny lab b",
            "byway member deny lab 12D3KooWabcdefgh",
            "byway member deny --subnet lab b",
        ],
    ),
    (
        "member remove",
        [
            "byway member remove lab b",
            "byway member remove lab b --yes",
            "byway member remove lab 12D3KooWabcdefgh",
        ],
    ),
    (
        "member role",
        [
            "byway member role lab b admin",
            "byway member role lab b member",
            "byway member role --subnet lab b admin",
        ],
    ),
    (
        "member label",
        [
            "byway member label lab b site=berlin",
            "byway member label lab b site=berlin rack=7",
            "byway member label lab b site=",
        ],
    ),
    (
        "lease ls",
        [
            "byway lease ls lab",
            "byway lease ls --subnet lab",
            "byway lease ls lab --json",
        ],
    ),
    (
        "lease add",
        [
            "byway lease add lab 10.77.9.0/24",
            "byway lease add lab 10.77.9.7 --member b",
            "byway lease add --subnet lab fd7a:31c0:9d2e:9::/64",
        ],
    ),
    (
        "lease rm",
        [
            "byway lease rm lab 10.77.9.0/24",
            "byway lease rm lab 10.77.9.7 --member b",
            "byway lease rm --subnet lab 10.77.9.7",
        ],
    ),
    (
        "lease import",
        [
            "byway lease import lab table.txt",
            "byway lease import lab -",
            "byway lease import --subnet lab table.txt",
        ],
    ),
    ("up", ["byway up", "byway up lab", "byway up --json lab"]),
    (
        "down",
        ["byway down", "byway down lab", "byway down --json lab"],
    ),
    (
        "attach netns",
        [
            "byway attach netns web --subnet lab",
            "byway attach netns /run/netns/web --subnet lab --name www",
            "byway attach netns web --subnet lab --ip 10.77.1.7",
        ],
    ),
    (
        "attach podman",
        [
            "byway attach podman web --subnet lab",
            "byway attach podman web --subnet lab --name www",
            "CONTAINER_HOST=unix:///run/two.sock byway attach podman web --subnet lab",
        ],
    ),
    (
        "attach docker",
        [
            "byway attach docker web --subnet lab",
            "byway attach docker web --subnet lab --name www",
            "DOCKER_HOST=unix:///run/two.sock byway attach docker web --subnet lab",
        ],
    ),
    (
        "run",
        [
            "byway run --subnet lab -- python3 -m http.server",
            "byway run --subnet lab --name web -- nginx",
            "byway run --subnet lab --ip 10.77.1.9 -- sh",
        ],
    ),
    (
        "attach tap",
        [
            "byway attach tap vm1 --subnet lab",
            "byway attach tap vm1 --subnet lab --user 1000",
            "byway attach tap vm1 --subnet lab --name web --mac 52:54:00:12:34:56",
        ],
    ),
    (
        "detach",
        [
            "byway detach web",
            "byway detach web --subnet lab",
            "byway detach web --quiet",
        ],
    ),
    (
        "workload ls",
        [
            "byway workload ls",
            "byway workload ls --json",
            "byway --socket /run/two.sock workload ls",
        ],
    ),
    (
        "workload health",
        [
            "byway workload health web tcp 80",
            "byway workload health web http http://localhost:8080/up --interval 5s --fail 2",
            "byway workload health web exec --interval 5s -- sh -c 'test -e /tmp/ok'",
        ],
    ),
    (
        "workload show",
        [
            "byway workload show web",
            "byway workload show web --subnet lab",
            "byway workload show web --json",
        ],
    ),
    (
        "dns add",
        [
            "byway dns add lab www 10.77.1.7",
            "byway dns add lab mail --cname www.lab.internal --ttl 300",
            "byway dns add lab _http._tcp --srv \"0 5 80 www\"",
        ],
    ),
    (
        "dns rm",
        [
            "byway dns rm lab www",
            "byway dns rm lab www AAAA",
            "byway dns rm --subnet lab www",
        ],
    ),
    (
        "dns release",
        [
            "byway dns release lab www",
            "byway dns release lab www --member b",
            "byway dns release --subnet lab www",
        ],
    ),
    (
        "dns ls",
        [
            "byway dns ls lab",
            "byway dns ls --subnet lab",
            "byway dns ls lab --json",
        ],
    ),
    (
        "dns query",
        [
            "byway dns query web.lab.internal",
            "byway dns query web.lab.internal AAAA",
            "byway dns query 10.77.1.7",
        ],
    ),
    (
        "map add",
        [
            "byway map add lab tcp 8080 web:80",
            "byway map add lab udp 127.0.0.1:53 dns:53 --name dns",
            "byway map add lab tcp [::]:443 web:443 --allow fd00::/8,2001:db8::/32",
        ],
    ),
    (
        "map rm",
        [
            "byway map rm lab web",
            "byway map rm lab tcp 8080",
            "byway map rm lab udp 127.0.0.1:53",
        ],
    ),
    (
        "map ls",
        [
            "byway map ls",
            "byway map ls lab",
            "byway map ls lab --json",
        ],
    ),
    (
        "status",
        [
            "byway status",
            "byway status lab --watch",
            "byway status --check healthy",
        ],
    ),
    (
        "id",
        [
            "byway id",
            "byway id --json",
            "byway --socket /run/two.sock id",
        ],
    ),
    (
        "peer ls",
        [
            "byway peer ls",
            "byway peer ls --json",
            "byway --socket /run/two.sock peer ls",
        ],
    ),
    (
        "peer show",
        [
            "byway peer show b",
            "byway peer show 12D3KooWabcdefgh",
            "byway peer show b --json",
        ],
    ),
    (
        "peer resolve",
        [
            "byway peer resolve b",
            "byway peer resolve 12D3KooWabcdefgh",
            "byway peer resolve b --json",
        ],
    ),
    (
        "peer connect",
        [
            "byway peer connect b",
            "byway peer connect vpn.example.org:4100",
            "byway peer connect /ip4/192.0.2.7/tcp/4100",
        ],
    ),
    (
        "peer disconnect",
        [
            "byway peer disconnect b",
            "byway peer disconnect 12D3KooWabcdefgh",
            "byway peer disconnect b --quiet",
        ],
    ),
    (
        "ping",
        [
            "byway ping b --until-direct",
            "byway ping web.lab.internal -c 10",
            "byway ping 10.77.2.1 --timeout 500ms --path relay",
        ],
    ),
    (
        "netcheck",
        [
            "byway netcheck",
            "byway netcheck --json",
            "byway --socket /run/two.sock netcheck",
        ],
    ),
    (
        "doctor",
        [
            "byway doctor",
            "byway doctor b --json",
            "byway doctor --fix",
        ],
    ),
    (
        "probe",
        [
            "byway probe b",
            "byway probe b --json",
            "byway probe 10.77.2.1",
        ],
    ),
    (
        "config check",
        [
            "byway config check",
            "byway config check --config ./byway.toml",
            "byway config check --json",
        ],
    ),
    (
        "config show",
        [
            "byway config show",
            "byway config show --effective --origin",
            "byway config show --config ./byway.toml",
        ],
    ),
    (
        "relay ls",
        [
            "byway relay ls",
            "byway relay ls --json",
            "byway --socket /run/byway-relay/byway.sock relay ls",
        ],
    ),
    (
        "relay offer",
        [
            "byway relay offer",
            "byway relay offer --max-mbit 50",
            "byway --socket /run/two.sock relay offer",
        ],
    ),
    (
        "relay off",
        [
            "byway relay off",
            "byway relay off --json",
            "byway --socket /run/two.sock relay off",
        ],
    ),
    (
        "relay auto",
        [
            "byway relay auto",
            "byway relay auto --json",
            "byway --socket /run/two.sock relay auto",
        ],
    ),
    (
        "reload",
        [
            "byway reload",
            "byway reload --json",
            "byway --socket /run/two.sock reload",
        ],
    ),
    (
        "metrics",
        [
            "byway metrics",
            "byway metrics --json",
            "byway --socket /run/two.sock metrics",
        ],
    ),
    (
        "cleanup",
        [
            "byway cleanup",
            "byway cleanup --state-dir /var/lib/two",
            "byway cleanup --keep-guests",
        ],
    ),
    (
        "version",
        [
            "byway version",
            "byway version --json",
            "byway --socket /run/two.sock version",
        ],
    ),
];
