//! A container engine that is not root's: what it says holds for its own user's namespaces alone.

use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Child;

use anyhow::{Result, ensure};

use crate::lab::runner::Case;
use crate::lab::split::Split;
use crate::lab::{Host, Lab, SOON, until};
use crate::{ci, fast};

pub const CASES: &[Case] = &[
    fast!(
        an_engine_of_a_users_own_is_not_believed_about_namespaces_of_others,
        "setpriv"
    ),
    ci!(
        an_engine_that_the_helper_asks_is_believed_as_its_user_is,
        "setpriv"
    ),
];

/// A user that this machine knows nothing of.
const USER: u32 = 4_000_001;

/// An engine with one container, whose process is the one that it is told of. Its socket is the first argument.
const ENGINE: &str = r#"
import http.server, json, os, socketserver, sys
pid, file = int(sys.argv[2]), sys.argv[3]
class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"Id": "ab" * 32, "Name": "/web", "ResolvConfPath": file,
            "State": {"Status": "running", "Running": True, "Pid": pid},
            "HostConfig": {"NetworkMode": "bridge"}, "Config": {"Labels": {}}}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def address_string(self): return ""
    def log_message(self, *_): pass
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): pass
server = Server(sys.argv[1], Engine)
os.chmod(sys.argv[1], 0o666)
server.serve_forever()
"#;

/// A process that ends when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn an_engine_of_a_users_own_is_not_believed_about_namespaces_of_others(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    std::fs::set_permissions(lab.dir(), PermissionsExt::from_mode(0o755))?;
    believed_as_their_users(lab, &a)?;
    // Nobody learns by a path whether a file is there.
    let text = lab.dir().join("text");
    std::fs::write(&text, "")?;
    let mut answers = Vec::new();
    for at in [&text, &lab.dir().join("nothing"), &lab.dir().to_path_buf()] {
        let at = at.display().to_string();
        a.set_env("DOCKER_HOST", &format!("unix://{at}"));
        let answer = a.fails(1, "E-", &["attach", "docker", "web", "--subnet", "lab"])?;
        answers.push(answer.err.replace(&at, "PATH"));
    }
    answers.dedup();
    ensure!(answers.len() == 1, "{answers:?}");
    Ok(())
}

fn an_engine_that_the_helper_asks_is_believed_as_its_user_is(lab: &Lab) -> Result<()> {
    let mut split = Split::new(lab, "a")?;
    let sockets = [USER, 0].map(|user| lab.dir().join(format!("engine-{user}/sock")));
    split.engines = sockets.map(|at| at.display().to_string()).to_vec();
    split.start_helper()?;
    split.start()?;
    believed_as_their_users(lab, &split.host)?;
    split.host.terminate()
}

/// Has a user's engine and root's tell the same of a namespace that is root's.
fn believed_as_their_users(lab: &Lab, a: &Host) -> Result<()> {
    let web = lab.workload("web")?;
    a.json(&["create", "lab"])?;
    let sleeper = Process(web.command(&["sleep", "60"]).spawn()?);
    let pid = sleeper.0.id().to_string();
    let attach = ["attach", "docker", "web", "--subnet", "lab"];
    for user in [USER, 0] {
        let dir = lab.dir().join(format!("engine-{user}"));
        std::fs::create_dir(&dir)?;
        chown(&dir, Some(user), Some(user))?;
        let socket = dir.join("sock").to_string_lossy().into_owned();
        let secret = dir.join("secret").to_string_lossy().into_owned();
        let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
        let words = ["setpriv", &uid, &gid, "--clear-groups", "/usr/bin/python3"];
        let words = [&words[..], &["-c", ENGINE, &socket, &pid, &secret]].concat();
        let _engine = Process(a.ns().command(&words).spawn()?);
        until("the engine listens", SOON, || {
            Ok(std::path::Path::new(&socket).exists())
        })?;
        a.set_env("DOCKER_HOST", &format!("unix://{socket}"));
        if user == USER {
            a.fails(4, "E-PERMISSION", &attach)?;
            ensure!(
                !web.ip(&["-o", "link", "show"])?.contains("byway0"),
                "nothing was made inside"
            );
        } else {
            // The same words of root's engine are believed.
            a.ok(&attach)?;
            a.ok(&["detach", "web"])?;
        }
    }
    Ok(())
}
