//! What an admin takes from a member that has a workload there.

use super::*;
use crate::model::host::{NetnsRef, ResolvConf};
use crate::model::workload::Target;

fn web() -> NewWorkload {
    NewWorkload {
        name: "web".parse().unwrap(),
        name_is_default: false,
        target: Target::Netns("web".to_owned()),
        netns: Some(NetnsRef {
            path: "/run/netns/web".into(),
            device: 1,
            inode: 1,
            cookie: None,
        }),
        inner_link: "byway0".to_owned(),
        resolv_conf: ResolvConf::None,
        mac: None,
        beside: Default::default(),
        followed: None,
    }
}

impl Lab {
    async fn attach(&self, ip: Option<&str>) {
        self.attach_as("web", ip).await;
    }

    async fn attach_as(&self, name: &str, ip: Option<&str>) {
        let name = name.parse().unwrap();
        let workload = NewWorkload { name, ..web() };
        let ip = ip.map(|a| a.parse().unwrap());
        self.node.attach("lab".into(), workload, ip).await.unwrap();
    }

    /// The state of the only workload, and its name.
    async fn shown(&self) -> (String, String) {
        let all = self.node.run(|core| core.workloads(None)).await.unwrap();
        let [only] = all.as_slice() else {
            panic!("{all:?}")
        };
        (only.state.clone(), only.fqdn.clone())
    }
}

#[tokio::test]
async fn a_workload_whose_lease_is_gone_says_so() {
    // Of both families: the other address stays where it is.
    let lab = start(State::new(identity(1)));
    let founded = lab.node.run(|core| {
        let founding = crate::testing::founding("lab".parse().unwrap(), "a".parse().unwrap());
        let mut draft = Draft::default();
        draft.put(core.state.found(founding, FOUNDED).unwrap());
        core.commit(draft).map(drop)
    });
    founded.await.unwrap().unwrap();
    let lease: ipnet::IpNet = "10.77.200.0/24".parse().unwrap();
    let added = lab.node.lease_add("lab".into(), lease, None);
    added.await.unwrap();
    lab.attach(Some("10.77.200.9")).await;
    assert_eq!(lab.shown().await.0, "ok");
    let removed = lab.node.lease_rm("lab".into(), lease, None);
    removed.await.unwrap();
    assert_eq!(lab.shown().await.0, "not-leased");
}

#[tokio::test]
async fn a_released_name_is_nobodys_until_its_workload_is_attached_anew() {
    let lab = lab(1).await;
    lab.attach(None).await;
    let release = lab.node.dns_release("lab".into(), "web".into(), None);
    release.await.unwrap();
    let shown = |state: &str, name: &str| (state.to_owned(), format!("{name}.lab.internal"));
    assert_eq!(lab.shown().await, shown("name-released", "web.a"));
    lab.node.detach("web".into(), None, None).await.unwrap();
    lab.attach(None).await;
    assert_eq!(lab.shown().await, shown("ok", "web"));
}

#[tokio::test]
async fn a_name_that_a_member_took_is_not_called_released() {
    let lab = lab(1).await;
    let state = lab.node.run(|core| {
        let subnet = core.state.find("lab").unwrap().clone();
        (subnet, core.state.me.clone())
    });
    let (mut elsewhere, owner) = state.await.unwrap();
    // Granted before anybody there could hear of the workload.
    admit(&mut elsewhere, &owner, 2, Role::Member);
    lab.attach_as("m2", None).await;
    assert_eq!(lab.shown().await.0, "ok");
    let records = elsewhere.records.all().cloned().collect();
    lab.receive(2, records).await;
    let taken = ("name-taken".to_owned(), "m2.a.lab.internal".to_owned());
    assert_eq!(lab.shown().await, taken);
}

#[tokio::test]
async fn names_are_listed_in_their_order() {
    let lab = lab(3).await;
    lab.attach(None).await;
    let text = |t: &str| vec![RecordData::Txt(t.to_owned())];
    for name in ["zeta", "alpha", "mid"] {
        lab.node
            .dns_add("lab".into(), name.into(), text("x"), 60)
            .await
            .unwrap();
    }
    let names = lab.node.names("lab".into()).await.unwrap();
    let names: Vec<String> = names.into_iter().map(|n| n.name).collect();
    assert!(names.len() > 6 && names.is_sorted(), "{names:?}");
}
