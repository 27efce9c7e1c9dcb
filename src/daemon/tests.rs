//! Whole daemons in memory, in the hands of a test: it decides what of them runs, and when. The tests here are of what lies
//! between a decision and the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;

use super::build::{Built, Loops, build};
use super::platform::AnyHost;
use super::tasks::Running;
use super::{Platform, STOP_WITHIN};
use crate::api::types::{
    Admission, Cidr, Created, Error, ErrorKind, Request, Response, SubnetState, WorkloadKind,
};
use crate::command::docker::Docker;
use crate::command::{self, Commands};
use crate::config::{Config, Value};
use crate::host::memory::MemoryKernel;
use crate::host::{Applied, Failure, failure};
use crate::model::error::Code;
use crate::model::host::{Namespace, TunConfig};
use crate::model::id::SubnetId;
use crate::service::clock;
use crate::testing::{PATIENCE, eventually};
use crate::tun::Tun;
use crate::tun::memory::{Segmentation, pair};

mod relay;

/// Numbers of the listeners, unique in this process.
static NEXT: AtomicU64 = AtomicU64::new(9_000_000);

/// A daemon in memory, which runs when it is told to.
pub(crate) struct Daemon {
    pub(crate) commands: Commands,
    dir: TempDir,
    number: u64,
    loops: Option<Loops>,
    running: Option<Running>,
}

impl Daemon {
    /// Builds one; nothing of it runs but its node.
    pub(crate) async fn build(name: &str) -> Daemon {
        Daemon::build_on(TempDir::new().unwrap(), name).await
    }

    async fn build_on(dir: TempDir, name: &str) -> Daemon {
        Daemon::build_set(dir, name, |_| {}).await
    }

    /// The same with other settings.
    async fn build_set(dir: TempDir, name: &str, set: impl FnOnce(&mut Config)) -> Daemon {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut config = Config::defaults(name);
        config.state_dir = dir.path().join("state");
        config.socket = dir.path().join("s");
        config.listen = vec![format!("/memory/{number}")];
        config.lan_discovery = false;
        set(&mut config);
        // Nobody reads what comes out of a device, which lives as long as its other end.
        let kernels = Mutex::new(Vec::new());
        let open = move |_: &TunConfig| -> Arc<dyn Tun> {
            let (device, kernel) = pair(Segmentation::Offload);
            kernels.lock().push(kernel);
            Arc::new(device)
        };
        let platform = Platform::Memory(Arc::new(open));
        Daemon::build_as(dir, number, config, &platform)
            .await
            .unwrap()
    }

    async fn build_as(
        dir: TempDir,
        number: u64,
        config: Config,
        platform: &Platform,
    ) -> Result<Daemon, Error> {
        let docker = Arc::new(Docker::begin(&config, None));
        let Built { commands, loops } = build(config, platform, docker).await?;
        clock::begin(&commands.node).await.unwrap();
        Ok(Daemon {
            commands,
            dir,
            number,
            loops: Some(loops),
            running: None,
        })
    }

    /// The kernel of one that does not run yet.
    fn kernel(&self) -> MemoryKernel {
        match &self.loops.as_ref().unwrap().host.host {
            AnyHost::Memory(host) => host.kernel(),
            AnyHost::Linux(_) | AnyHost::Untouched(_) => unreachable!("it was built in memory"),
        }
    }

    /// Starts its tasks.
    pub(crate) fn run(&mut self) {
        let loops = self.loops.take().unwrap();
        self.running = Some(Running::start(&self.commands, loops));
    }

    /// Builds one that runs.
    pub(crate) async fn start(name: &str) -> Daemon {
        let mut daemon = Daemon::build(name).await;
        daemon.run();
        daemon
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        format!("/memory/{}", self.number)
    }

    pub(crate) async fn call(&self, request: Request) -> Result<Response, Error> {
        command::call(&self.commands, request).await
    }

    /// Founds a subnet.
    pub(crate) async fn create(&self, name: &str) -> Created {
        self.try_create(name).await.unwrap()
    }

    async fn try_create(&self, name: &str) -> Result<Created, Error> {
        let request = Request::Create {
            name: name.parse().unwrap(),
            cidr4: Cidr::None,
            cidr6: Cidr::Auto,
            block4: None,
            admission: Admission::Approve,
            domain: None,
            grant_life_s: None,
            host: Default::default(),
        };
        match self.call(request).await? {
            Response::Created(created) => Ok(created),
            other => panic!("{other:?}"),
        }
    }

    /// How many members a subnet has as it sees it.
    async fn members(&self, subnet: &str) -> usize {
        let subnet = subnet.to_owned();
        match self.call(Request::MemberLs { subnet }).await {
            Ok(Response::Members { members }) => members.len(),
            other => panic!("{other:?}"),
        }
    }

    /// Joins as an invite or an ID says, with a member at these addresses; waits where `wait` says so.
    pub(crate) async fn join(
        &self,
        target: &str,
        peers: &[String],
        wait: bool,
    ) -> Result<SubnetState, Error> {
        let request = Request::Join {
            target: target.to_owned(),
            peers: peers.to_vec(),
            name: None,
            alias: None,
            ip: None,
            host: None,
            allow: Default::default(),
            timeout_ms: u64::try_from(PATIENCE.as_millis()).unwrap(),
            wait,
        };
        match self.call(request).await? {
            Response::Joined(joined) => Ok(joined.state),
            other => panic!("{other:?}"),
        }
    }

    /// Whether it is a member of a subnet.
    pub(crate) async fn is_in(&self, id: SubnetId) -> bool {
        self.commands.node.joined(id).await.unwrap().is_some()
    }

    /// Stops it; its state stays.
    pub(crate) async fn stop(mut self) -> TempDir {
        if let Some(running) = self.running.take() {
            running.stop(&self.commands, STOP_WITHIN).await;
        }
        self.dir
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_and_doctor_with_fix_have_routers_asked_at_once_and_looking_does_not() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("byway.toml");
    std::fs::write(&file, "version = 1\n").unwrap();
    let read = |config: &mut Config| config.sources.file = Some(file);
    let mut daemon = Daemon::build_set(dir, "asker", read).await;
    daemon.run();
    let mut asked = daemon.commands.mesh.portmap.follow_again();
    let doctor = |fix| Request::Doctor { peer: None, fix };
    for looks in [Request::Netcheck, doctor(false)] {
        daemon.call(looks).await.unwrap();
    }
    assert!(!asked.has_changed().unwrap());
    for asks in [Request::Reload, doctor(true)] {
        let text = format!("{asks:?}");
        daemon.call(asks).await.unwrap();
        assert!(asked.has_changed().unwrap(), "{text}");
        asked.mark_unchanged();
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_was_let_in_stands_where_the_daemon_stops_before_the_kernel_has_followed() {
    let founder = Daemon::start("founder").await;
    let created = founder.create("lab").await;
    let mut joiner = Daemon::build("joiner").await;
    // What the host has done is heard of by nobody, as if it were still at it.
    let unheard = watch::channel(Applied::default()).0;
    let loops = joiner.loops.as_mut().unwrap();
    let heard = std::mem::replace(&mut loops.host.applied, unheard);
    joiner.run();
    let invite = created.invite.unwrap();
    let member = [founder.address()];
    let stopping = async {
        eventually("the joiner is let in", PATIENCE, async || {
            joiner.is_in(created.id).await
        })
        .await;
        // What a stop does: the reconciler ends, and tells nobody anything any more.
        drop(heard);
    };
    let (told, ()) = tokio::join!(joiner.join(&invite, &member, true), stopping);
    assert_eq!(told.unwrap_err().code, Code::Stopping);
    assert!(joiner.is_in(created.id).await);
    let dir = joiner.stop().await;
    let again = Daemon::build_on(dir, "joiner").await;
    assert!(
        again.is_in(created.id).await,
        "its next start carries it out"
    );
    again.stop().await;
    founder.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_refuses_of_one_subnet_fails_no_command_about_another() {
    let mut daemon = Daemon::build("machine").await;
    let kernel = daemon.kernel();
    daemon.run();
    daemon.create("old").await;
    kernel.refuse(Some("open TUN bw-old"));
    kernel.disturb(|observed| {
        observed
            .namespace_mut(&Namespace::Host)
            .links
            .remove("bw-old");
    });
    let mut applied = daemon.commands.applied.clone();
    applied
        .wait_for(|applied| !applied.failures.is_empty())
        .await
        .unwrap();
    daemon.create("new").await;
    let subnet = || "old".to_owned();
    let name = Request::DnsAdd {
        subnet: subnet(),
        name: "wiki".to_owned(),
        data: vec![crate::model::zone::RecordData::Txt("x".into())],
        ttl: 60,
    };
    daemon
        .call(name)
        .await
        .expect("a name asks nothing of the kernel");
    let up = |subnet: &str| Request::Up {
        subnet: Some(subnet.to_owned()),
    };
    daemon.call(up("new")).await.unwrap();
    let refused = daemon.call(up("old")).await.unwrap_err();
    assert_eq!(refused.code, Code::Kernel);
    assert!(
        refused.message.contains("open TUN bw-old") && refused.message.contains("is saved"),
        "what stands is not said to have failed: {refused}"
    );
    match daemon.call(Request::Status { subnet: None }).await {
        Ok(Response::Status(status)) => assert!(
            status
                .problems
                .iter()
                .any(|p| p.message.starts_with("open TUN bw-old")),
            "{:?}",
            status.problems
        ),
        other => panic!("{other:?}"),
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subnet_that_the_kernel_refuses_was_never_founded() {
    let mut daemon = Daemon::build("machine").await;
    let kernel = daemon.kernel();
    daemon.run();
    kernel.refuse(Some("open TUN bw-lab"));
    let refused = daemon.try_create("lab").await.unwrap_err();
    assert_eq!(refused.code, Code::Kernel, "{refused}");
    let subnets = daemon.commands.node.subnets().await.unwrap();
    assert!(subnets.is_empty(), "{subnets:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_the_kernel_refuses_leaves_nothing_at_the_founder() {
    let founder = Daemon::start("founder").await;
    let created = founder.create("lab").await;
    let mut joiner = Daemon::build("joiner").await;
    let kernel = joiner.kernel();
    joiner.run();
    kernel.refuse(Some("open TUN bw-lab"));
    let invite = created.invite.unwrap();
    let member = [founder.address()];
    for _ in 0..3 {
        let refused = joiner.join(&invite, &member, true).await.unwrap_err();
        assert_eq!(refused.code, Code::Kernel, "{refused}");
        assert!(!joiner.is_in(created.id).await);
        eventually("the founder holds no ghost", PATIENCE, async || {
            founder.members("lab").await == 1
        })
        .await;
    }
    kernel.refuse(None);
    assert_eq!(
        joiner.join(&invite, &member, true).await,
        Ok(SubnetState::Ready),
        "and the invite is as good as before"
    );
    assert_eq!(founder.members("lab").await, 2);
    joiner.stop().await;
    founder.stop().await;
}

/// A daemon whose host is heard by nobody but the test, which tells what comes of it.
async fn unheard(daemon: &mut Daemon) -> watch::Sender<Applied> {
    let nobody = watch::channel(Applied::default()).0;
    let loops = daemon.loops.as_mut().unwrap();
    std::mem::replace(&mut loops.host.applied, nobody)
}

/// Has the host answer every generation, with these failures.
fn answer(applied: &watch::Sender<Applied>, failures: Vec<Failure>) {
    applied.send_replace(Applied {
        generation: u64::MAX,
        failures,
        ..Applied::default()
    });
}

/// How many workloads and port maps it has.
async fn additions(daemon: &Daemon) -> (usize, usize) {
    let workloads = daemon.commands.node.workloads().await.unwrap();
    let maps = daemon.commands.node.maps(None).await.unwrap();
    (workloads.len(), maps.len())
}

/// Runs a test in a mount namespace of its own, so that it can mount what nobody else sees.
fn in_own_mounts<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        run(&["mount", "--make-rprivate", "/"]);
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(command: &[&str]) {
    let [program, arguments @ ..] = command else {
        unreachable!("a program")
    };
    let done = std::process::Command::new(program).args(arguments).status();
    assert!(done.unwrap().success(), "{command:?}");
}

#[test]
#[ignore = "needs root"]
fn what_failed_on_a_full_disk_is_taken_back_once_there_is_room() {
    in_own_mounts(async || {
        let dir = TempDir::new().unwrap();
        let path = dir.path().to_owned();
        let at = path.to_str().unwrap().to_owned();
        run(&["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", &at]);
        let mut daemon = Daemon::build_on(dir, "machine").await;
        let applied = unheard(&mut daemon).await;
        daemon.run();
        answer(&applied, Vec::new());
        daemon.create("lab").await;
        // From here on the host answers nothing until the disk is full.
        applied.send_replace(Applied::default());
        let add = Request::MapAdd {
            subnet: "lab".to_owned(),
            proto: crate::model::host::Proto::Tcp,
            listen: Some("::1".parse().unwrap()),
            ports: "9000".parse().unwrap(),
            target: "machine".to_owned(),
            target_ports: "80".parse().unwrap(),
            name: None,
            allow: Vec::new(),
            workload: None,
        };
        let fill = path.join("fill");
        let filling = async {
            eventually("the map is saved", PATIENCE, async || {
                additions(&daemon).await == (0, 1)
            })
            .await;
            let mut file = std::fs::File::create(&fill).unwrap();
            let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
            answer(&applied, vec![failure("map", "refused by the test")]);
        };
        let (told, ()) = tokio::join!(daemon.call(add), filling);
        assert_eq!(told.unwrap_err().code, Code::Kernel);
        assert_eq!(additions(&daemon).await, (0, 1), "it cannot be taken back");
        std::fs::remove_file(&fill).unwrap();
        eventually("it is taken back", PATIENCE, async || {
            additions(&daemon).await == (0, 0)
        })
        .await;
        drop(daemon.stop().await);
        run(&["umount", "-l", &at]);
    });
}

#[test]
#[ignore = "needs root"]
fn a_namespace_that_ends_while_it_is_attached_is_not_attached() {
    in_own_mounts(async || {
        let name = format!("bwgone{}", std::process::id());
        run(&["ip", "netns", "add", &name]);
        let mut daemon = Daemon::build("machine").await;
        let applied = unheard(&mut daemon).await;
        daemon.run();
        answer(&applied, Vec::new());
        daemon.create("lab").await;
        applied.send_replace(Applied::default());
        let attach = Request::Attach {
            workload: WorkloadKind::Netns(name.clone()),
            subnet: "lab".to_owned(),
            name: None,
            ip: None,
            mac: None,
            engine: None,
        };
        let ending = async {
            eventually("it is attached", PATIENCE, async || {
                additions(&daemon).await == (1, 0)
            })
            .await;
            run(&["ip", "netns", "del", &name]);
            // The host passes over what is dead: nothing has failed.
            answer(&applied, Vec::new());
        };
        let (told, ()) = tokio::join!(daemon.call(attach), ending);
        let told = told.unwrap_err();
        assert_eq!(told.code, Code::NoNetns, "{told}");
        assert_eq!(additions(&daemon).await, (0, 0));
        daemon.stop().await;
    });
}
