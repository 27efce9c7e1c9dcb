//! Files that describe workloads to come: imported whole, taken back whole, and what comes gets what was planned.

use std::net::IpAddr;

use proptest::prelude::*;

use super::machine::{attach, detach, map, restarted};
use super::*;
use crate::api::types::{Error, ImportInfo, ImportMap, ImportWorkload, Imported};
use crate::model::error::Code;
use crate::model::host::Proto;
use crate::model::local::Local;

const FILE: &str = "/srv/shop/compose.yml";

/// `NAME [ADDRESS…] [PORT:PORT…] [+ALIAS…]`.
fn workload(text: &str) -> ImportWorkload {
    let mut words = text.split(' ');
    let mut asked = ImportWorkload {
        name: words.next().unwrap().parse().unwrap(),
        subnet: "lab".into(),
        containers: vec![format!("shop_{}_1", text.split(' ').next().unwrap())],
        addresses: vec![],
        mac: None,
        aliases: vec![],
        maps: vec![],
        ipv4_only: false,
        line: None,
    };
    for word in words {
        if let Some(alias) = word.strip_prefix('+') {
            asked.aliases.push(alias.to_owned());
        } else if let Ok(address) = word.parse() {
            asked.addresses.push(address);
        } else {
            let (here, there) = word.split_once(':').unwrap();
            asked.maps.push(ImportMap {
                proto: Proto::Tcp,
                listen: None,
                ports: here.parse().unwrap(),
                target_ports: there.parse().unwrap(),
                by_engine: false,
            });
        }
    }
    asked
}

fn read(texts: &[&str]) -> Vec<NewImport> {
    let each = texts.iter().map(|text| workload(text));
    each.map(|asked| NewImport::new(asked, None)).collect()
}

pub(super) async fn import(lab: &Lab, source: &str, texts: &[&str]) -> Result<Imported, Error> {
    let made = lab.node.import(source.into(), read(texts)).await?;
    Ok(made.answer.imported)
}

async fn back(lab: &Lab) -> Result<Imported, Error> {
    Ok(lab.node.import_back(FILE.into()).await?.answer.imported)
}

/// This node's own side of its subnet, and what it tells the others, without their numbers.
async fn local(lab: &Lab) -> (Local, Announcement) {
    let told = |core: &mut Core| {
        let subnet = core.state.subnets.values().next().unwrap();
        let announcement = subnet.records.announcement(core.state.me.peer).cloned();
        let told = Announcement {
            version: 0,
            issued: 0,
            ..announcement.unwrap_or_default()
        };
        ((*subnet.local).clone(), told)
    };
    lab.node.run(told).await.unwrap()
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, code: Code) -> String {
    let error = answer.unwrap_err();
    assert_eq!(error.code, code, "{}", error.message);
    error.message
}

#[tokio::test]
async fn what_comes_gets_what_its_file_planned_for_it() {
    let lab = lab(1).await;
    let made = import(&lab, FILE, &["web 8080:80 +www", "db 10.77.1.77"])
        .await
        .unwrap();
    assert!(made.changed && made.removed.is_empty());
    let web = made
        .workloads
        .iter()
        .find(|w| w.workload.as_str() == "web")
        .unwrap();
    assert_eq!(web.maps, ["tcp 0.0.0.0:8080"], "the subnet has no IPv6");
    let planned = web.addresses.clone();
    let (_, told) = local(&lab).await;
    let names: Vec<_> = told
        .workloads
        .iter()
        .map(|w| (w.name.as_str(), w.addresses.len()))
        .collect();
    assert_eq!(
        names,
        [("db", 0), ("web", 0)],
        "their names are kept and lead nowhere"
    );
    // Others get other addresses, whatever the order.
    let other = attach(&lab.node, "other", 1, None).await;
    assert!(other != planned && other != ["10.77.1.77".parse::<IpAddr>().unwrap()]);
    let taken = lab.node.attach(
        "lab".into(),
        super::machine::workload("thief", 2),
        Some(planned[0]),
    );
    refused(taken.await, Code::AddressTaken);
    // By its container's name it is known.
    let mut came = super::machine::workload("web", 3);
    (came.name, came.name_is_default) = ("shop-web-1".parse().unwrap(), true);
    let came = lab
        .node
        .attach("lab".into(), came, None)
        .await
        .unwrap()
        .answer
        .0;
    assert_eq!((came.workload.as_str(), &came.addresses), ("web", &planned));
    let (own, told) = local(&lab).await;
    assert!(
        told.names.iter().any(|n| n.name == "www"),
        "{:?}",
        told.names
    );
    assert_eq!(own.maps[0].target, "web.a");
    let maps = lab.node.maps(None).await.unwrap();
    assert_eq!(
        (maps[0].state.as_str(), maps[0].address),
        ("ok", planned.first().copied())
    );
    detach(&lab.node, "web").await;
    let again = attach(&lab.node, "web", 4, None).await;
    assert_eq!(again, planned, "and again when it comes back");
}

#[tokio::test]
async fn the_same_file_changes_nothing_and_an_edited_one_the_difference() {
    let lab = lab(1).await;
    let first = import(&lab, FILE, &["web 8080:80", "db 5432:5432"])
        .await
        .unwrap();
    let before = local(&lab).await;
    let again = import(&lab, FILE, &["db 5432:5432", "web 8080:80"])
        .await
        .unwrap();
    assert!(!again.changed && again.workloads == first.workloads);
    assert_eq!(local(&lab).await, before);
    let edited = import(&lab, FILE, &["web 8081:80", "cache"]).await.unwrap();
    assert_eq!(edited.removed, ["db", "tcp-5432", "tcp-8080"]);
    let of = |made: &Imported, name: &str| {
        let mut all = made.workloads.iter();
        all.find(|w| w.workload.as_str() == name)
            .unwrap()
            .addresses
            .clone()
    };
    assert_eq!(of(&edited, "web"), of(&first, "web"));
    // A restart in between changes nothing.
    let lab = restarted(lab).await;
    assert!(back(&lab).await.unwrap().changed);
    let (own, told) = local(&lab).await;
    assert_eq!((own.maps, told), (before.0.maps, before.1));
    let twice = refused(back(&lab).await, Code::Import);
    assert!(twice.contains("nothing to roll back"), "{twice}");
}

#[tokio::test]
async fn what_was_changed_by_hand_is_not_rolled_back_over() {
    let lab = lab(1).await;
    import(&lab, FILE, &["web 8080:80"]).await.unwrap();
    lab.node
        .map_rm("lab".into(), Some("tcp-8080".into()), None, None)
        .await
        .unwrap();
    let before = local(&lab).await;
    let why = refused(back(&lab).await, Code::Import);
    assert!(why.contains("tcp-8080"), "{why}");
    assert_eq!(local(&lab).await, before);
    // The file once more brings it back, and what there is to roll back stays.
    let mended = import(&lab, FILE, &["web 8080:80"]).await.unwrap();
    assert!(mended.changed && local(&lab).await.0.maps.len() == 1);
    assert!(back(&lab).await.unwrap().workloads.is_empty());
    // The former port is another's by now.
    import(&lab, FILE, &["web 8081:80"]).await.unwrap();
    import(&lab, FILE, &["web 8082:80"]).await.unwrap();
    attach(&lab.node, "sure", 1, None).await;
    lab.node.map_add("lab".into(), map(8081)).await.unwrap();
    let before = local(&lab).await;
    let why = refused(back(&lab).await, Code::PortTaken);
    assert!(why.contains("8081"), "{why}");
    assert_eq!(local(&lab).await, before);
}

#[tokio::test]
async fn what_the_kernel_refuses_is_as_it_was_before_with_the_step_to_roll_back() {
    let lab = lab(1).await;
    let undone = async |texts: &[&str]| {
        // Whose names were, is remembered all the same.
        let whole = async || {
            let (mut own, told) = local(&lab).await;
            own.seen = Default::default();
            (own, told)
        };
        let before = whole().await;
        let made = lab.node.import(FILE.into(), read(texts)).await.unwrap();
        assert!(made.answer.imported.changed);
        let former = made.answer.former;
        lab.node.import_undo(FILE.into(), former).await.unwrap();
        assert_eq!(whole().await, before, "{texts:?}");
    };
    undone(&["q0 7101:80"]).await;
    import(&lab, FILE, &["q0 7101:80"]).await.unwrap();
    import(&lab, FILE, &["q1 7101:80 +one 10.77.200.9", "q2 7102:80"])
        .await
        .unwrap();
    undone(&["q3 7103:80"]).await;
    undone(&["q1 7101:81 +two"]).await;
    let returns = lab.node.import_returns(FILE.into()).await.unwrap();
    let ports: Vec<String> = returns.iter().map(|(_, m)| m.ports.to_string()).collect();
    assert_eq!(ports, ["7101"], "what a rollback brings back");
    // A map that somebody took away stays away.
    let name = Some("tcp-7102".into());
    lab.node
        .map_rm("lab".into(), name, None, None)
        .await
        .unwrap();
    undone(&["q1 7101:80 +one 10.77.200.9", "q2 7102:80"]).await;
    undone(&["q4"]).await;
    refused(lab.node.import_returns(FILE.into()).await, Code::Import);
}

#[tokio::test]
async fn a_name_whose_workload_has_not_come_is_said_to_be_planned() {
    let lab = lab(1).await;
    import(&lab, FILE, &["web"]).await.unwrap();
    let planned = async |text: &str| {
        let found = lab.node.withheld(text.to_owned()).await.unwrap();
        found.map(|w| (w.workload.to_string(), w.planned))
    };
    for text in ["web", "web.a", "web.a.lab.internal"] {
        assert_eq!(
            planned(text).await,
            Some(("web".to_owned(), true)),
            "{text}"
        );
    }
    assert_eq!(planned("db").await, None);
}

#[tokio::test]
async fn a_file_with_one_thing_wrong_changes_nothing() {
    let lab = lab(2).await;
    attach(&lab.node, "sure", 1, Some("10.77.1.50".parse().unwrap())).await;
    lab.node.map_add("lab".into(), map(80)).await.unwrap();
    import(&lab, "/srv/other.yml", &["cache 10.77.1.60 6379:6379"])
        .await
        .unwrap();
    let before = local(&lab).await;
    for (wrong, code) in [
        ("m2", Code::NameTaken),
        ("a", Code::NameTaken),
        ("cache", Code::NameTaken),
        ("x 10.77.1.50", Code::AddressTaken),
        ("x 10.77.1.60", Code::AddressTaken),
        ("x 10.77.1.1", Code::AddressTaken),
        ("x 192.0.2.1", Code::NotLeased),
        ("x 10.77.1.70 10.77.1.71", Code::Address),
        ("x 80:80", Code::PortTaken),
        ("x 6379:1", Code::PortTaken),
        ("x 70-75:80", Code::PortRange),
        ("x 1000-3000:1000-3000", Code::PortRange),
        ("x 8080:80 8080:81", Code::PortTaken),
        ("x +a_b", Code::Name),
        ("web", Code::Import),
    ] {
        let answer = import(&lab, FILE, &["web 8000:80", wrong]).await;
        let error = answer.expect_err(wrong);
        assert_eq!(error.code, code, "{wrong}: {}", error.message);
        assert_eq!(local(&lab).await, before, "{wrong}");
    }
    let mut elsewhere = read(&["web"]);
    elsewhere.extend(read(&["db"]).into_iter().map(|_| {
        let asked = ImportWorkload {
            subnet: "prod".into(),
            ..workload("db")
        };
        NewImport::new(asked, None)
    }));
    let answer = lab.node.import(FILE.into(), elsewhere).await;
    refused(answer, Code::NoSubnet);
    refused(import(&lab, "", &["web"]).await, Code::Import);
    assert_eq!(local(&lab).await, before);
}

#[tokio::test]
async fn a_refusal_names_the_line_and_many_names_are_refused() {
    let lab = lab(1).await;
    let at = |line, text: &str| {
        let asked = ImportWorkload {
            line: Some(line),
            ..workload(text)
        };
        NewImport::new(asked, None)
    };
    let names: Vec<String> = (0..33).map(|n| format!("+n{n}")).collect();
    let many = format!("db {}", names.join(" "));
    let fits = format!("db {}", names[1..].join(" "));
    for wrong in ["db 192.0.2.1", "yet 8000:80", "web", many.as_str()] {
        let all = vec![at(3, "web 8000:80"), at(7, wrong)];
        let error = lab.node.import(FILE.into(), all).await.unwrap_err();
        assert!(error.message.starts_with("line 7: "), "{}", error.message);
    }
    let elsewhere = ImportWorkload {
        subnet: "prod".into(),
        line: Some(9),
        ..workload("db")
    };
    let all = vec![NewImport::new(elsewhere, None)];
    let error = lab.node.import(FILE.into(), all).await.unwrap_err();
    assert!(error.message.starts_with("line 9: "), "{}", error.message);
    import(&lab, FILE, &[&fits]).await.unwrap();
}

#[tokio::test]
async fn what_was_imported_is_listed_until_nothing_is_left_of_it() {
    let lab = lab(1).await;
    let listed = || async { lab.node.imports().await.unwrap() };
    assert_eq!(listed().await, []);
    import(&lab, FILE, &["web 8000:80", "db"]).await.unwrap();
    attach(&lab.node, "db", 7, None).await;
    let [file] = &listed().await[..] else {
        panic!("one file")
    };
    assert_eq!((file.source.as_str(), file.rollback), (FILE, true));
    let names = |file: &ImportInfo| -> Vec<(String, bool)> {
        let all = file.workloads.iter();
        all.map(|w| (w.workload.to_string(), w.here)).collect()
    };
    assert_eq!(names(file), [("db".into(), true), ("web".into(), false)]);
    // Without the file: nothing is said of it any more, and that can be taken back.
    import(&lab, FILE, &[]).await.unwrap();
    let [file] = &listed().await[..] else {
        panic!("it can be rolled back")
    };
    assert!(file.rollback && file.workloads.is_empty(), "{file:?}");
    back(&lab).await.unwrap();
    let [file] = &listed().await[..] else {
        panic!("it is back")
    };
    assert_eq!((file.workloads.len(), file.rollback), (2, false));
}

#[tokio::test]
async fn an_address_outside_the_leases_is_leased_and_given_back() {
    let lab = lab(1).await;
    let leases = |lab: &Lab| {
        let node = lab.node.clone();
        async move { node.leases("lab".into()).await.unwrap().len() }
    };
    let before = leases(&lab).await;
    import(&lab, FILE, &["web 10.77.200.9"]).await.unwrap();
    assert_eq!(leases(&lab).await, before + 1);
    let at = attach(&lab.node, "web", 1, None).await;
    assert_eq!(at, ["10.77.200.9".parse::<IpAddr>().unwrap()]);
    let why = refused(back(&lab).await, Code::Import);
    assert!(why.contains("web"), "it is in use: {why}");
    detach(&lab.node, "web").await;
    back(&lab).await.unwrap();
    assert_eq!(leases(&lab).await, before);
}

fn any_file() -> impl Strategy<Value = Vec<String>> {
    let one = (0..4u8, 0..4u8, 0..6u8, 0..3u8).prop_map(|(name, address, port, alias)| {
        let mut text = format!("w{name}");
        if address > 1 {
            text += &format!(" 10.77.1.{}", 100 + address);
        }
        if port > 2 {
            text += &format!(" {}:80", 8000 + u16::from(port));
        }
        if alias > 1 {
            text += " +other";
        }
        text
    });
    proptest::collection::vec(one, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_import_that_is_rolled_back_leaves_everything_as_it_was(files in proptest::collection::vec(any_file(), 1..6)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let lab = lab(1).await;
            attach(&lab.node, "sure", 1, None).await;
            for file in files {
                let texts: Vec<&str> = file.iter().map(String::as_str).collect();
                let before = local(&lab).await;
                match import(&lab, FILE, &texts).await {
                    Ok(made) if made.changed => {
                        back(&lab).await.unwrap();
                        let (mut own, told) = local(&lab).await;
                        let now = own.imports.get(FILE).map(|i| i.now.clone());
                        let then = before.0.imports.get(FILE).map(|i| i.now.clone());
                        prop_assert_eq!(now, then.filter(|c| !c.is_empty()));
                        own.imports = before.0.imports.clone();
                        // That a name was answered once is remembered of every name.
                        own.seen = before.0.seen.clone();
                        prop_assert_eq!((&own, &told), (&before.0, &before.1));
                        import(&lab, FILE, &texts).await.unwrap();
                    }
                    _ => prop_assert_eq!(&local(&lab).await, &before),
                }
            }
            Ok(())
        })?;
    }
}
