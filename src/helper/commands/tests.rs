use super::*;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const EXEC: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

/// An engine on a thread of this process. What it answers is by the method and path of a question; each is heard.
struct Fake {
    dir: tempfile::TempDir,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn new(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + 'static) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("engine")).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept() {
                let mut asked = vec![0; 65536];
                let length = stream.read(&mut asked).unwrap();
                let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
                let line = asked.split(" HTTP").next().unwrap().to_owned();
                hears.lock().push(asked);
                match answer(&line) {
                    Some(bytes) => drop(stream.write_all(&bytes)),
                    // It begins to answer, and says no more.
                    None => {
                        drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
                        open.push(stream);
                    }
                }
            }
        });
        Fake { dir, heard }
    }

    fn command(&self, words: &[&str]) -> Command {
        Command {
            engine: self.dir.path().join("engine"),
            container: ID.to_owned(),
            words: words.iter().map(|w| (*w).to_owned()).collect(),
        }
    }

    fn lines(&self) -> Vec<String> {
        let heard = self.heard.lock();
        let line = |asked: &String| asked.split(" HTTP").next().unwrap().to_owned();
        heard.iter().map(line).collect()
    }
}

fn says(status: u16, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: x\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn frame(stream: u8, text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[stream, 0, 0, 0][..], &length, text.as_bytes()].concat()
}

/// An engine whose command says something, and then is as `exec` has it.
fn running(said: Option<Vec<u8>>, exec: Value) -> Fake {
    Fake::new(move |line| match line {
        l if l.starts_with("GET /exec/") => Some(says(200, exec.to_string().as_bytes())),
        l if l.ends_with("/start") => said.clone(),
        _ => Some(says(201, json!({ "Id": EXEC }).to_string().as_bytes())),
    })
}

fn ran(fake: &Fake, limit: u64) -> Result<Ran, Error> {
    let command = fake.command(&["sh", "-c", "test -e \"/ok\""]);
    let engine = Engine { command: &command };
    let id = engine.make(Instant::now() + PATIENCE)?;
    engine.run(id, Duration::from_millis(limit))
}

#[test]
fn a_command_is_run_as_the_container_would_and_its_code_and_last_line_are_told() {
    let said = [frame(1, "one\ntwo"), frame(2, "\nth\u{7}re\u{1b}[31me\n\n")].concat();
    let fake = running(
        Some(says(200, &said)),
        json!({"Running": false, "ExitCode": 3}),
    );
    let expected = Ran::Ended {
        code: 3,
        said: "thre[31me".to_owned(),
    };
    assert_eq!(ran(&fake, 1000).unwrap(), expected);
    let made = fake.heard.lock()[0].clone();
    let body: Value = serde_json::from_str(made.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(
        body,
        json!({
            "AttachStdin": false, "AttachStdout": true, "AttachStderr": true, "Tty": false,
            "Cmd": ["sh", "-c", "test -e \"/ok\""],
        }),
        "no other user, no other rights"
    );
    let own = format!("POST /exec/{EXEC}/start");
    assert!(fake.lines().contains(&own), "{:?}", fake.lines());
    // It was never begun: newer engines refuse, and have no code or 0.
    for code in [json!(null), json!(0)] {
        let refused = says(400, br#"{"message":"exec: \"nosuch\": not found"}"#);
        let fake = running(Some(refused), json!({"Running": false, "ExitCode": code}));
        assert!(
            matches!(ran(&fake, 1000).unwrap(), Ran::Ended { code: 126, said } if said.contains("nosuch"))
        );
    }
}

#[test]
fn one_that_hangs_or_talks_without_end_goes_on_and_is_known_by_its_id() {
    let goes_on = |talks| Ran::GoesOn {
        id: EXEC.to_owned(),
        talks,
    };
    let fake = running(None, json!({"Running": true}));
    let begun = Instant::now();
    assert_eq!(ran(&fake, 200).unwrap(), goes_on(false));
    assert!((200..1500).contains(&begun.elapsed().as_millis()));
    // Its output is closed and it runs on.
    let fake = running(Some(says(200, b"")), json!({"Running": true}));
    assert_eq!(ran(&fake, 200).unwrap(), goes_on(false));
    let endless = says(200, &b"y\n".repeat(MAX_SAID));
    let fake = running(Some(endless), json!({"Running": true}));
    assert_eq!(ran(&fake, 2000).unwrap(), goes_on(true));
    // A child holds the output open, and the command itself has ended.
    let fake = running(None, json!({"Running": false, "ExitCode": 0}));
    assert!(matches!(
        ran(&fake, 200).unwrap(),
        Ran::Ended { code: 0, .. }
    ));
}

#[test]
fn what_is_no_answer_tells_nothing() {
    for answer in [
        says(500, b"no"),
        says(201, b"{}"),
        says(201, br#"{"Id":"../x"}"#),
        b"SSH-2.0\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        vec![],
    ] {
        let fake = Fake::new(move |_| Some(answer.clone()));
        assert!(matches!(ran(&fake, 100), Err(Error::Engine(_))));
    }
    let command = Command {
        engine: "/none/engine".into(),
        container: ID.to_owned(),
        words: vec!["true".to_owned()],
    };
    assert!(matches!(may_run(&command, None), Err(Error::Engine(_))));
    let stopped = json!({"State": {"Running": false, "Pid": 0}}).to_string();
    let fake = Fake::new(move |_| Some(says(200, stopped.as_bytes())));
    let command = fake.command(&["true"]);
    assert!(matches!(may_run(&command, None), Err(Error::Engine(_))));
}

#[test]
fn a_former_command_that_runs_is_found_by_its_id_or_by_its_words() {
    let exec = json!({
        "Running": true, "ProcessConfig": {"entrypoint": "sleep", "arguments": ["9"]},
    });
    let fake = running(None, exec);
    let container = Container {
        commands: Some(vec![EXEC.to_owned()]),
        ..Container::default()
    };
    let before = |words: &[&str], former: &Former| {
        let command = fake.command(words);
        let engine = Engine { command: &command };
        let until = Instant::now() + PATIENCE;
        engine.before(&container, former, until).unwrap()
    };
    let id = Some(EXEC.to_owned());
    assert_eq!(before(&["sleep", "9"], &Former::Unknown), id);
    assert_eq!(
        before(&["sleep", "8"], &Former::Unknown),
        None,
        "a person's"
    );
    let known = Former::Runs(EXEC.to_owned());
    assert_eq!(before(&["sleep", "9"], &known), id);
    assert_eq!(before(&["true"], &known), None, "another one has its turn");
    assert_eq!(before(&["sleep", "9"], &Former::Ended), None);
    assert_eq!(before(&["true"], &Former::Runs("../x".to_owned())), None);
    let forgotten = Fake::new(|_| Some(says(404, b"{}")));
    let command = forgotten.command(&["true"]);
    let engine = Engine { command: &command };
    let former = Former::Runs(EXEC.to_owned());
    let until = Instant::now() + PATIENCE;
    assert_eq!(engine.before(&container, &former, until).unwrap(), None);
}

/// Whether a command is allowed in a container that its engine tells of so, whose image brings such labels along.
fn allowed_in(mut told: Value, of_image: Value) -> bool {
    told["Image"] = json!(format!("sha256:{ID}"));
    let image = json!({"Config": {"Labels": of_image}}).to_string();
    let fake = Fake::new(move |line| {
        assert_eq!(line, format!("GET /images/sha256:{ID}/json"));
        Some(says(200, image.as_bytes()))
    });
    let command = fake.command(&["sh", "-c", "test -e /ok"]);
    let container: Container = serde_json::from_value(told).unwrap();
    let engine = Engine { command: &command };
    let label = engine.label(&container, Instant::now() + PATIENCE).unwrap();
    judge(&command, &container, label.as_deref()).is_ok()
}

#[test]
fn a_container_as_good_as_root_is_entered_only_where_its_own_label_asks_for_that_command() {
    assert!(allowed_in(json!({}), json!(null)));
    let weak = json!({
        "HostConfig": {"CapAdd": ["NET_ADMIN", "CAP_NET_RAW"], "PidMode": "", "Devices": [],
            "NetworkMode": "lab", "IpcMode": "private", "SecurityOpt": ["no-new-privileges"]},
        "Mounts": [{"Type": "bind", "Source": "/srv/web"}, {"Type": "volume", "Source": "/var"},
            {"Type": "bind", "Source": "/home/me/shop/html"}],
    });
    assert!(allowed_in(weak, json!({})));
    let strong = [
        json!({"HostConfig": {"Privileged": true}}),
        json!({"HostConfig": {"PidMode": "host"}}),
        json!({"HostConfig": {"NetworkMode": "host"}}),
        json!({"HostConfig": {"IpcMode": "host"}}),
        json!({"HostConfig": {"SecurityOpt": ["apparmor=unconfined"]}}),
        json!({"HostConfig": {"DeviceCgroupRules": ["a *:* rwm"]}}),
        json!({"HostConfig": {"CapAdd": ["SYS_ADMIN"]}}),
        json!({"HostConfig": {"CapAdd": ["CAP_SYS_PTRACE"]}}),
        json!({"HostConfig": {"CapAdd": ["ALL"]}}),
        json!({"HostConfig": {"Devices": [{"PathOnHost": "/dev/sda"}]}}),
        json!({"Mounts": [{"Type": "bind", "Source": "/"}]}),
        json!({"Mounts": [{"Type": "bind", "Source": "/etc/"}]}),
        json!({"Mounts": [{"Type": "bind", "Source": "/srv/docker.sock"}]}),
        json!({"Mounts": [{"Type": "bind", "Source": "/etc/cron.d"}]}),
        json!({"Mounts": [{"Type": "bind", "Source": "/mnt/../etc"}]}),
        json!({"Mounts": [{"Type": "bind", "Source": "/var/lib/docker"}]}),
        json!({"Mounts": [{"Type": "bind", "Source": "/home/me"}]}),
        json!({"Mounts": [{"Type": "bind", "Source": "/home/me/.ssh"}]}),
    ];
    for told in strong {
        assert!(!allowed_in(told.clone(), json!({})), "{told}");
        let labelled_beside = |label: &str, of_image: Value| {
            let mut told = told.clone();
            told["Config"] = json!({"Labels": {"byway.health": label}});
            allowed_in(told, of_image)
        };
        let labelled = |label: &str| labelled_beside(label, json!({"other": "x"}));
        let same = "exec sh -c 'test -e /ok'";
        let of_image = json!({"byway.health": same});
        assert!(!labelled_beside(same, of_image), "the image's: {told}");
        assert!(labelled("interval=5s exec sh -c 'test -e /ok'"), "{told}");
        assert!(!labelled("exec sh -c 'test -e /other'"), "{told}");
        assert!(!labelled("exec sh -c"), "{told}");
        assert!(!labelled("tcp 80"), "{told}");
    }
}

#[test]
fn only_a_command_in_a_container_of_an_engine_that_is_known_is_heard_of() {
    let fake = Fake::new(|_| Some(says(200, b"{}")));
    let right = fake.command(&["true"]);
    let engines = [right.engine.clone()];
    let refused = |command: &Command, engines: &[PathBuf]| {
        matches!(may_run(command, Some(engines)), Err(Error::Refused(_)))
    };
    assert!(refused(&right, &[]), "no engine");
    for container in ["web", "../../version", &ID[..12]] {
        let command = Command {
            container: container.to_owned(),
            ..right.clone()
        };
        assert!(refused(&command, &engines), "{container}");
    }
    for words in [vec![], vec![String::new()], vec!["x".repeat(20_000)]] {
        let command = Command {
            words,
            ..right.clone()
        };
        assert!(refused(&command, &engines));
    }
    assert_eq!(fake.lines(), Vec::<String>::new(), "nothing was asked");
}

#[test]
fn a_container_without_a_link_of_ours_is_refused() {
    let me = std::process::id();
    let told = json!({"State": {"Running": true, "Pid": me}}).to_string();
    let fake = Fake::new(move |_| Some(says(200, told.as_bytes())));
    let command = fake.command(&["true"]);
    let refused = std::thread::spawn(move || may_run(&command, None)).join();
    // Who may not enter its own namespace once more is no root, and gets no further.
    assert!(matches!(
        refused.unwrap(),
        Err(Error::Engine(_) | Error::Missing(_) | Error::System { .. })
    ));
}

#[test]
fn what_an_engine_says_is_passed_on_in_one_short_line() {
    let long = format!(r#"{{"State":"{}"}}"#, "A".repeat(300_000));
    let fake = Fake::new(move |_| Some(says(200, long.as_bytes())));
    match may_run(&fake.command(&["true"]), None) {
        Err(Error::Engine(why)) => assert!(why.len() < 500, "{}", why.len()),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs root and python3"]
fn an_engine_of_another_user_is_asked_for_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;

    // Where that user may make a socket.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let path = dir.path().join("engine");
    let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\nprint('ready', flush=True)\nc, _ = s.accept()\nprint(c.recv(100))";
    let mut other = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .uid(65534)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut says = other.stdout.take().unwrap();
    let mut ready = [0; 6];
    says.read_exact(&mut ready).unwrap();
    let command = Command {
        engine: path,
        container: ID.to_owned(),
        words: vec!["true".to_owned()],
    };
    match may_run(&command, None) {
        Err(Error::NotAllowed(why)) => assert!(why.contains("user 65534"), "{why}"),
        asked => panic!("{asked:?}"),
    }
    let mut heard = String::new();
    says.read_to_string(&mut heard).unwrap();
    other.wait().unwrap();
    assert_eq!(heard, "b''\n", "it heard nothing");
}
