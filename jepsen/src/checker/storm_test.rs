use super::*;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn switch(on: bool, at: u64) -> Stampede {
    Stampede::Switch {
        on,
        share: 1_000,
        epoch: ms(1_000),
        budget: 1_000_000,
        time: ms(at),
    }
}

fn begins(at: u64) -> Stampede {
    Stampede::Begins {
        consumers: 100,
        bytes: 1_000,
        time: ms(at),
    }
}

/// Ten a second, each current with its list.
fn orderly(from: u64) -> Vec<Stampede> {
    (0..100)
        .flat_map(|consumer| {
            let time = ms(from + consumer * 100);
            let name = format!("c{consumer}");
            [
                Stampede::Listed {
                    consumer: name.clone(),
                    server: 1,
                    time,
                },
                Stampede::Current { consumer: name, time },
            ]
        })
        .collect()
}

/// So many bytes in each second, sampled ten times a second.
fn egress(rates: &[u64]) -> Vec<Stampede> {
    let mut lines = Vec::new();
    let mut bytes = 0;
    for tenth in 0..rates.len() * 10 {
        lines.push(Stampede::Egress {
            server: 1,
            bytes,
            time: ms(tenth as u64 * 100),
        });
        bytes += rates[tenth / 10] / 10;
    }
    lines
}

fn fault(time: u64, end: u64) -> Fault {
    Fault {
        what: "x".into(),
        time: ms(time),
        end: ms(end),
        bit: true,
        effect: String::new(),
    }
}

fn found(lines: &[Stampede], faults: &[Fault]) -> Vec<String> {
    check(lines, faults)
        .findings
        .into_iter()
        .map(|finding| finding.what)
        .collect()
}

#[test]
fn an_orderly_stampede_passes() {
    let mut lines = vec![switch(true, 0), begins(2_000)];
    lines.extend(orderly(2_000));
    lines.extend(egress(&[900_000; 30]));
    let verdict = check(&lines, &[]);
    assert!(verdict.is_good(), "{verdict:?}");
    // Before it is on, and a round after it is off, the budget holds nobody.
    let mut rates = vec![900_000; 40];
    (rates[0], rates[39]) = (5_000_000, 5_000_000);
    let lines = [vec![switch(true, 1_000), switch(false, 20_000)], egress(&rates)].concat();
    assert!(check(&lines, &[]).is_good());
}

#[test]
fn bytes_beyond_the_budget_are_caught() {
    let mut rates = vec![900_000; 30];
    (rates[10], rates[11]) = (1_200_000, 1_200_000);
    let lines = [vec![switch(true, 0)], egress(&rates)].concat();
    let found_ = found(&lines, &[]);
    assert_eq!(found_.len(), 1, "{found_:?}");
    assert!(found_[0].contains("its budget is 1000000"), "{found_:?}");
    // Just after it was turned off, too.
    let lines = [vec![switch(true, 0), switch(false, 8_000)], egress(&rates)].concat();
    assert_eq!(found(&lines, &[]).len(), 1);
    // Something had held them back.
    assert!(found(&lines, &[fault(7_000, 9_500)]).is_empty());
}

#[test]
fn lists_beyond_the_share_and_consumers_that_wait_for_ever_are_caught() {
    let mut lines = vec![switch(true, 0), begins(2_000)];
    lines.extend((0..100).map(|consumer| Stampede::Listed {
        consumer: format!("c{consumer}"),
        server: 1,
        time: ms(2_500),
    }));
    assert!(found(&lines, &[])[0].contains("full lists"));
    let mut lines = vec![switch(true, 0), begins(2_000)];
    lines.extend(orderly(2_000).into_iter().take(190));
    lines.extend(egress(&[900_000; 40]));
    let found = found(&lines, &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("95 were current"), "{found:?}");
}

#[test]
fn heartbeats_that_are_shed_are_caught() {
    let vital = |shed| Stampede::Vital {
        what: "heartbeat".into(),
        shed,
        time: ms(500),
    };
    assert!(found(&[vital(false)], &[]).is_empty());
    assert_eq!(found(&[vital(true)], &[]).len(), 1);
    assert!(!check(&[], &[]).is_good(), "nothing was judged");
}
