use super::*;
use crate::model::id::SubnetId;

fn subject(name: &str) -> Subject {
    (SubnetId([1; 16]), name.parse().unwrap(), 7)
}

fn health(interval: u32, fail: u16) -> Health {
    Health {
        check: Check::new(Probe::Tcp(80), Some(interval), Some(fail)).unwrap(),
        unhealthy: None,
        by_label: false,
    }
}

/// Asks `web` whenever it is due, until `seconds` have passed: when it turned, and to what.
fn turns(
    checks: &mut Checks,
    from: u64,
    seconds: u64,
    well: impl Fn(u64) -> bool,
) -> Vec<(u64, Turn)> {
    let mut found = Vec::new();
    for now in (from..from + seconds * 1000).step_by(100) {
        for (subject, _) in checks.due(now) {
            let turn = checks.answered(&subject, well(now), now);
            found.extend(turn.filter(|t| *t != Turn::Begun).map(|t| (now, t)));
        }
    }
    found
}

fn following(interval: u32, fail: u16) -> Checks {
    let mut checks = Checks::default();
    checks.follow([(subject("web"), health(interval, fail))].into(), 0);
    checks
}

#[test]
fn it_counts_as_well_until_it_failed_so_often_in_a_row_and_again_at_the_first_success() {
    let mut checks = following(10, 3);
    assert_eq!(
        turns(&mut checks, 0, 60, |_| true),
        [],
        "well from the start"
    );
    // Two failures and a success in turn are never three in a row.
    assert_eq!(
        turns(&mut checks, 60_000, 300, |now| (now / 10_000) % 3 == 0),
        []
    );
    let ill = turns(&mut checks, 360_000, 60, |_| false);
    assert_eq!(ill.len(), 1, "{ill:?}");
    let (at, turn) = ill[0];
    assert_eq!(turn, Turn::Unhealthy);
    assert!(
        (360_000..=370_000).contains(&at),
        "the two before it had failed, too: {at}"
    );
    let well = turns(&mut checks, 420_000, 60, |_| true);
    assert_eq!(well.len(), 1);
    assert!(
        well[0].0 < 430_100 && well[0].1 == Turn::Healthy,
        "{well:?}"
    );
}

#[test]
fn one_that_goes_back_and_forth_is_believed_later_each_time() {
    let mut checks = following(1, 1);
    // For every other second, which is one question each.
    let all = turns(&mut checks, 0, 600, |now| (now / 1000) % 2 == 0);
    assert!(
        all.len() <= 4,
        "{} turns in ten minutes: {all:?}",
        all.len()
    );
    // Down for 5 s and up for 40 s: it comes back each time, and at most once in 37 s.
    let mut checks = following(1, 1);
    let all = turns(&mut checks, 0, 900, |now| (now / 1000) % 45 >= 5);
    let back: Vec<u64> = all
        .iter()
        .filter(|t| t.1 == Turn::Healthy)
        .map(|t| t.0)
        .collect();
    assert!((18..=21).contains(&back.len()), "{back:?}");
    let ups: Vec<u64> = all
        .chunks(2)
        .filter_map(|pair| Some(pair.get(1)?.0 - pair[0].0))
        .collect();
    assert!(ups[0] < 7_000 && *ups.last().unwrap() > 32_000, "{ups:?}");
    // Ten minutes without a failure, and one success is enough again.
    let quiet = turns(&mut checks, 900_000, 700, |_| true);
    assert!(quiet.len() <= 1, "{quiet:?}");
    let ill = turns(&mut checks, 1_600_000, 10, |now| now >= 1_605_000);
    assert_eq!(ill.len(), 2, "{ill:?}");
    assert!(ill[1].0 < 1_606_500, "{ill:?}");
}

#[test]
fn many_are_spread_over_the_interval_and_one_that_hangs_holds_nothing() {
    let all = |n: usize| (0..n).map(|n| (subject(&format!("w{n}")), health(10, 3)));
    let mut checks = Checks::default();
    checks.follow(all(1000).collect(), 0);
    let mut asked = std::collections::BTreeMap::new();
    let mut most = 0;
    let mut hung = None;
    for now in (0..20_000).step_by(10) {
        let due = checks.due(now);
        most = most.max(due.len());
        for (subject, _) in due {
            *asked.entry(subject.1.clone()).or_insert(0) += 1;
            if hung.is_none() {
                hung = Some(subject);
            } else {
                checks.answered(&subject, true, now);
            }
        }
    }
    assert_eq!(asked.len(), 1000);
    let hung = hung.unwrap();
    assert!(most <= AT_ONCE, "{most} at once");
    assert!(
        asked.iter().all(|(name, n)| *n >= 2 || *name == hung.1),
        "{asked:?}"
    );
    assert_eq!(
        asked[&hung.1], 1,
        "it is not asked again while it is under way"
    );
    // Where none answers, no more than the bound are under way, and time goes on for nobody.
    let mut checks = Checks::default();
    checks.follow(all(100).collect(), 0);
    let begun: usize = (0..60_000)
        .step_by(100)
        .map(|now| checks.due(now).len())
        .sum();
    assert_eq!((begun, checks.next()), (AT_ONCE, None));
}

#[test]
fn slow_commands_hold_no_place_of_those_that_ask_a_port() {
    let exec = |interval: u32| Health {
        check: Check::new(Probe::Exec(vec!["true".into()]), Some(interval), None).unwrap(),
        ..health(1, 3)
    };
    let mut all: BTreeMap<Subject, Health> = (0..60)
        .map(|n| (subject(&format!("slow{n}")), exec(1)))
        .collect();
    all.insert(subject("web"), health(1, 3));
    let mut checks = Checks::default();
    checks.follow(all.clone(), 0);
    let mut asked: BTreeMap<Subject, u64> = BTreeMap::new();
    // A command takes five seconds, the port answers at once.
    let mut running: Vec<(u64, Subject)> = Vec::new();
    let mut most = 0;
    for now in (0..45_000).step_by(100) {
        running.retain(|(end, subject)| {
            if *end <= now {
                checks.answered(subject, true, now);
            }
            *end > now
        });
        for (subject, check) in checks.due(now) {
            *asked.entry(subject.clone()).or_default() += 1;
            match check.probe {
                Probe::Exec(_) => running.push((now + 5000, subject)),
                _ => assert_eq!(
                    checks.answered(&subject, true, now),
                    (asked[&subject] == 1).then_some(Turn::Begun)
                ),
            }
        }
        most = most.max(running.len());
    }
    let web = asked.remove(&subject("web")).unwrap();
    assert!(web >= 44, "asked {web} times in 45 s");
    assert_eq!(most, COMMANDS_AT_ONCE);
    // Those that found no room stay due, and each has its turn: sixty by sixteen take four rounds of five seconds.
    assert!(
        asked.len() == 60 && asked.values().all(|n| *n >= 2),
        "{asked:?}"
    );
    // Time goes on for the port while no command may begin, and for commands while no port may be asked.
    let full = checks.due(45_000);
    assert!(
        full.is_empty() && running.len() == COMMANDS_AT_ONCE,
        "{full:?}"
    );
    assert!(
        checks.next().is_some_and(|at| at > 45_000),
        "{:?}",
        checks.next()
    );
    // What is followed no more gives its place back to its own kind.
    all.retain(|_, h| matches!(h.check.probe, Probe::Tcp(_)));
    checks.follow(all, 45_000);
    let fresh = (0..60).map(|n| (subject(&format!("new{n}")), exec(1)));
    checks.follow(fresh.collect(), 45_000);
    assert_eq!(checks.due(46_000).len(), COMMANDS_AT_ONCE);
}

#[test]
fn what_is_followed_no_more_is_forgotten_and_what_goes_on_is_not_asked_anew() {
    let mut checks = following(10, 1);
    let first = (0..10_000).find_map(|now| checks.due(now).pop()).unwrap().0;
    assert_eq!(first, subject("web"));
    let one = || [(subject("web"), health(10, 1))].into();
    checks.follow(one(), 100);
    assert_eq!(checks.due(10_000), [], "it is under way");
    checks.follow([(subject("db"), health(10, 1))].into(), 100);
    assert_eq!(
        checks.answered(&first, false, 200),
        None,
        "nobody asks that any more"
    );
    checks.follow(one(), 20_000);
    assert!(
        turns(&mut checks, 20_000, 20, |_| false).len() == 1,
        "and it is asked from the start"
    );
    // What is unhealthy from before is so until it succeeds.
    let mut checks = Checks::default();
    let known = Health {
        unhealthy: Some(5),
        ..health(10, 3)
    };
    checks.follow([(subject("web"), known)].into(), 0);
    assert_eq!(turns(&mut checks, 0, 30, |_| false), []);
    assert_eq!(turns(&mut checks, 30_000, 30, |_| true).len(), 1);
}

#[test]
fn the_first_success_is_told_once_and_what_could_not_be_asked_changes_nothing() {
    let mut checks = following(1, 2);
    let mut answer = |now: u64, well: Option<bool>| {
        let (subject, _) = checks.due(now).pop().unwrap();
        match well {
            Some(well) => checks.answered(&subject, well, now),
            None => {
                checks.unasked(&subject);
                None
            }
        }
    };
    assert_eq!(answer(1_000, Some(false)), None, "it has not said anything");
    assert_eq!(answer(2_000, Some(true)), Some(Turn::Begun));
    assert_eq!(answer(3_000, Some(true)), None, "once");
    assert_eq!(answer(4_000, Some(false)), None);
    assert_eq!(answer(5_000, None), None, "it neither failed nor succeeded");
    assert_eq!(answer(6_000, Some(false)), Some(Turn::Unhealthy));
    assert_eq!(answer(7_000, Some(true)), Some(Turn::Healthy));
    assert_eq!(answer(8_000, Some(true)), None);
}

#[test]
fn a_url_leads_to_the_workload_itself_and_nowhere_else() {
    let own = |host: &str| matches!(host, "localhost" | "web" | "10.77.1.2" | "fd7a::2");
    let of = |url: &str| Probe::http(url, own).map_err(|e| e.code);
    let http = |port, path: &str| {
        Ok(Probe::Http {
            port,
            path: path.to_owned(),
        })
    };
    assert_eq!(of("http://localhost"), http(80, "/"));
    assert_eq!(
        of("http://web:8080/health?deep=1"),
        http(8080, "/health?deep=1")
    );
    assert_eq!(of("http://[fd7a::2]:81/"), http(81, "/"));
    assert_eq!(of("http://[fd7a::2]/"), http(80, "/"));
    let long = format!("http://web/{}", "x".repeat(1024));
    for wrong in [
        "https://web/",
        "web",
        "http://",
        "http://web:0/",
        "http://web:x/",
        "http://web:99999/",
        "http://169.254.169.254/latest/meta-data",
        "http://web@10.0.0.1/",
        "http://10.0.0.1/",
        "http://web?x",
        "http://web/a b",
        "http://web/a#b",
        "http://web/\r\nHost:x",
        "http://[fd7a::2/",
        "http://[fd7a::2]81/",
        &long,
    ] {
        assert_eq!(of(wrong), Err(Code::Health), "{wrong:?}");
    }
}

#[test]
fn a_label_says_a_check() {
    let of = |text: &str| Check::of_label(text, |host| host == "localhost");
    assert_eq!(
        of("tcp 80").unwrap(),
        Check {
            probe: Probe::Tcp(80),
            interval: INTERVAL,
            fail: FAIL
        }
    );
    let whole = of(" http  http://localhost:8080/up interval=2 fail=5 ").unwrap();
    assert_eq!((whole.interval, whole.fail, whole.timeout()), (2, 5, 2000));
    assert_eq!(of("tcp 80").unwrap().timeout(), 5000);
    assert_eq!(of("tcp 80 interval=20s").unwrap().interval, 20);
    for wrong in [
        "",
        "tcp",
        "tcp 0",
        "tcp 70000",
        "udp 53",
        "tcp 80 interval=0",
        "tcp 80 interval=3601",
        "tcp 80 fail=0",
        "tcp 80 fail=101",
        "tcp 80 often",
        "http http://other/",
        "tcp 80 interval=1500ms",
        "tcp 80 interval=2h",
    ] {
        assert_eq!(
            of(wrong).map_err(|e| e.code),
            Err(Code::Health),
            "{wrong:?}"
        );
    }
    let none: [Vec<String>; 4] = [
        vec![],
        vec![String::new()],
        vec!["x".repeat(8192); 3],
        vec!["a\0".to_owned()],
    ];
    for words in none {
        assert!(Probe::exec(words).is_err());
    }
}
