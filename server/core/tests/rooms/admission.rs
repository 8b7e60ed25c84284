//! Who may register: networks, scopes, environments, and the list made of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use rollcall_core::admission::{AdmissionList, Candidate, Cidr, ENTRIES_MAX, NotAdmitted, Rule, TokenScope};
use rollcall_core::directory::{Command, Expected, GroupSettings, Limits, Refusal};

use crate::scene::{Scene, group};

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn scope(text: &str) -> TokenScope {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `10.0.0.0/8`, `register:prod`, `=prod`: each in its place.
fn list(entries: &[&str]) -> AdmissionList {
    let mut list = AdmissionList::default();
    for entry in entries {
        if let Some(environment) = entry.strip_prefix('=') {
            list.environments.insert(environment.parse().unwrap());
        } else if let Ok(cidr) = entry.parse() {
            list.cidrs.insert(cidr);
        } else {
            list.scopes.insert(scope(entry));
        }
    }
    list
}

#[test]
fn networks_contain_what_begins_with_their_bits() {
    for (network, inside, outside) in [
        (
            "10.1.0.0/16",
            &["10.1.0.0", "10.1.255.255", "::ffff:10.1.2.3"][..],
            &["10.0.255.255", "10.2.0.0", "::10.1.2.3"][..],
        ),
        (
            "10.1.2.3",
            &["10.1.2.3", "::ffff:10.1.2.3"],
            &["10.1.2.2", "10.1.2.4"],
        ),
        (
            "10.1.2.2/31",
            &["10.1.2.2", "10.1.2.3"],
            &["10.1.2.1", "10.1.2.4"],
        ),
        (
            "0.0.0.0/0",
            &["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"],
            &["::", "::1"],
        ),
        (
            "128.0.0.0/1",
            &["128.0.0.0", "255.255.255.255"],
            &["127.255.255.255"],
        ),
        (
            "::/0",
            &["::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
            &["1.2.3.4", "::ffff:1.2.3.4"],
        ),
        (
            "2001:db8::/32",
            &["2001:db8::1", "2001:db8:ffff::"],
            &["2001:db7:ffff::", "2001:db9::"],
        ),
        ("::1", &["::1"], &["::", "::2", "127.0.0.1"]),
        ("fe80::/10", &["fe80::1", "febf::"], &["fec0::"]),
        (
            "::ffff:10.0.0.0/104",
            &["10.0.0.1", "10.255.0.0", "::ffff:10.9.9.9"],
            &["11.0.0.0", "::ffff:11.0.0.0"],
        ),
        ("::ffff:0.0.0.0/96", &["1.2.3.4"], &["::1"]),
    ] {
        let network = cidr(network);
        for text in inside {
            assert!(network.contains(address(text)), "{text} in {network}");
        }
        for text in outside {
            assert!(!network.contains(address(text)), "{text} not in {network}");
        }
    }
}

#[test]
fn garbage_is_no_network_and_says_what_would_be_one() {
    for (text, complaint) in [
        ("", "is no network: use an address"),
        ("/8", "is no network"),
        ("10.0.0.0/", "is no network"),
        ("10.0.0.0/+8", "is no network"),
        ("10.0.0.0/-1", "is no network"),
        ("10.0.0.0/8/8", "is no network"),
        ("10.0.0.0/8 ", "is no network"),
        ("10.0.0.0/256", "is no network"),
        ("10.0.0/8", "is no network"),
        ("010.0.0.0/8", "is no network"),
        ("10.0.0.0:80", "is no network"),
        ("fe80::1%eth0/64", "is no network"),
        ("prod.example.org", "is no network"),
        ("10.0.0.0/33", "10.0.0.0 has 32 bits, 33 cannot count"),
        ("::/129", ":: has 128 bits, 129 cannot count"),
        ("10.1.2.3/16", "use 10.1.0.0/16"),
        ("2001:db8::1/64", "use 2001:db8::/64"),
        ("::ffff:10.0.0.0/95", "has bits set behind its prefix"),
        ("1.2.3.4/0", "use 0.0.0.0/0"),
    ] {
        let problem = text.parse::<Cidr>().unwrap_err().to_string();
        assert!(problem.contains(complaint), "{text:?}: {problem}");
    }
    let endless = "9".repeat(1 << 20);
    assert!(endless.parse::<Cidr>().unwrap_err().to_string().len() < 256);
}

#[test]
fn scopes_cover_their_group_and_those_below() {
    for (held, asked, covers) in [
        ("register:prod", "register:prod", true),
        ("register:prod", "register:prod/feed", true),
        ("register:prod/feed", "register:prod", false),
        ("register:prod", "register:production", false),
        ("register:prod", "deploy:prod", false),
        ("register:prod", "register", false),
        ("register", "register:prod/feed", true),
        ("register", "register", true),
        ("admin", "register:prod", true),
        ("admin", "team-red", true),
        ("register", "admin", false),
        ("team-red", "team-red", true),
        ("team-red", "team", false),
    ] {
        assert_eq!(scope(held).covers(&scope(asked)), covers, "{held} covers {asked}");
    }
    assert!(scope("register:prod").may_register(&group("prod/feed")));
    assert!(scope("admin").may_register(&group("prod/feed")));
    assert!(!scope("register:test").may_register(&group("prod/feed")));
    assert!(!scope("team-red").may_register(&group("prod/feed")));
}

#[test]
fn garbage_is_no_scope() {
    for (text, complaint) in [
        ("", "verb"),
        (":prod", "verb"),
        ("Register:prod", "verb"),
        ("*", "verb"),
        ("register prod", "verb"),
        (&"x".repeat(33), "verb"),
        ("register:", "does not name a group"),
        ("register:a//b", "does not name a group"),
        ("register:a:b", "does not name a group"),
        ("admin:prod", "admin has none"),
    ] {
        let problem = text.parse::<TokenScope>().unwrap_err().to_string();
        assert!(problem.contains(complaint), "{text:?}: {problem}");
    }
}

#[test]
fn each_rule_must_be_met_by_one_of_its_entries() {
    let held = [scope("register:prod")];
    let full = Candidate {
        address: Some(address("::ffff:10.1.2.3")),
        scopes: &held,
        claimed: Some("prod"),
        labelled: None,
    };
    let everything = [
        "10.9.0.0/16",
        "10.1.0.0/16",
        "register:prod/feed",
        "team",
        "=prod",
        "=staging",
    ];
    let cases: &[(&[&str], Candidate<'_>, Option<Rule>)] = &[
        (&[], Candidate::default(), None),
        (&everything, full, None),
        (
            &everything,
            Candidate {
                address: Some(address("10.2.0.1")),
                ..full
            },
            Some(Rule::Address),
        ),
        (
            &everything,
            Candidate {
                address: None,
                ..full
            },
            Some(Rule::Address),
        ),
        (&everything, Candidate { scopes: &[], ..full }, Some(Rule::Scope)),
        (
            &everything,
            Candidate {
                claimed: None,
                ..full
            },
            Some(Rule::Environment),
        ),
        (
            &everything,
            Candidate {
                claimed: Some("test"),
                ..full
            },
            Some(Rule::Environment),
        ),
        (
            &everything,
            Candidate {
                claimed: Some("PROD"),
                ..full
            },
            Some(Rule::Environment),
        ),
        // What the connection does not say, the label may; neither may say something else.
        (
            &["=prod"],
            Candidate {
                labelled: Some("prod"),
                ..Candidate::default()
            },
            None,
        ),
        (
            &["=prod"],
            Candidate {
                labelled: Some("test"),
                ..full
            },
            Some(Rule::Environment),
        ),
        (
            &["=prod"],
            Candidate {
                claimed: Some("test"),
                labelled: Some("prod"),
                ..full
            },
            Some(Rule::Environment),
        ),
        (
            &["=prod", "=test"],
            Candidate {
                labelled: Some("test"),
                ..full
            },
            None,
        ),
        // A rule without entries asks for nothing.
        (
            &["10.1.0.0/16"],
            Candidate {
                address: full.address,
                ..Candidate::default()
            },
            None,
        ),
        (&["team", "register"], full, Some(Rule::Scope)),
    ];
    for (entries, candidate, expected) in cases {
        let verdict = list(entries).check(candidate);
        let rule = verdict.as_ref().err().map(NotAdmitted::rule);
        assert_eq!(rule, *expected, "{entries:?} and {candidate:?}: {verdict:?}");
    }
}

#[test]
fn a_refusal_says_what_is_asked_for_and_stays_short() {
    let many: Vec<String> = (0..ENTRIES_MAX).map(|n| format!("10.{n}.0.0/16")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let nobody = Candidate::default();
    let said =
        |entries: &[&str], candidate: &Candidate<'_>| list(entries).check(candidate).unwrap_err().to_string();
    assert_eq!(
        said(
            &many,
            &Candidate {
                address: Some(address("::ffff:192.168.0.1")),
                ..nobody
            }
        ),
        "address 192.168.0.1 is in none of its networks (10.0.0.0/16, 10.1.0.0/16, 10.2.0.0/16, 10.3.0.0/16 and 60 \
         more): connect from one of them, or have yours added to the list"
    );
    assert_eq!(
        said(&["register:prod"], &nobody),
        "no token with scopes was shown, it asks for one of its scopes (register:prod): use a token that does, or \
         have its scopes changed"
    );
    assert_eq!(
        said(
            &["register:prod"],
            &Candidate {
                scopes: &[scope("register:test")],
                ..nobody
            }
        ),
        "the token holds register:test, which does not cover one of its scopes (register:prod): use a token that \
         does, or have its scopes changed"
    );
    assert_eq!(
        said(
            &["=prod"],
            &Candidate {
                claimed: Some(&"x".repeat(1_000)),
                ..nobody
            }
        ),
        format!(
            "environment {:?} is not one of its environments (prod): if this process does, configure it to say so",
            "x".repeat(64)
        )
    );
}

fn put(admission: AdmissionList) -> Command {
    Command::PutGroup {
        group: group("prod"),
        settings: GroupSettings {
            admission,
            ..GroupSettings::default()
        },
        expected: Expected::Any,
    }
}

#[test]
fn a_list_is_replicated_and_bounded() {
    let networks = |count: u32| AdmissionList {
        cidrs: (0..count)
            .map(|n| Cidr::new(Ipv4Addr::from_bits(n << 8).into(), 24).unwrap())
            .collect(),
        ..AdmissionList::default()
    };
    let mut scene = Scene::new(Limits::default());
    let full = networks(ENTRIES_MAX as u32);
    assert!(scene.done(put(full.clone())).changed);
    assert!(!scene.done(put(full.clone())).changed, "the same list again");
    assert_eq!(
        scene.directory.group(&group("prod")).unwrap().settings.admission,
        full
    );
    let refusal = scene.refused(put(networks(ENTRIES_MAX as u32 + 1)));
    let Refusal::TooLarge { what, size, size_max } = refusal else {
        panic!("{refusal:?}")
    };
    assert_eq!(
        (what.as_str(), size, size_max),
        ("settings.admission.cidrs", 65, 64)
    );
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).to_ipv6_mapped().into()),
    ]
}

/// An address and its network of some prefix, found bit by bit.
fn slow_contains(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    let (network, address) = (bits(network), bits(address.to_canonical()));
    network.len() == address.len() && (0..prefix.into()).all(|at| bit(&network, at) == bit(&address, at))
}

proptest! {
    #[test]
    fn any_network_survives_text_and_bytes_and_agrees_with_a_slow_reading(
        base in any_address(), prefix in 0_u8..=128, other in any_address(), flip in 0_u32..128,
    ) {
        let base = base.to_canonical();
        let bits = if base.is_ipv4() { 32 } else { 128 };
        let prefix = prefix % (bits + 1);
        // Where the first address of the network lies, the refusal of any other one tells.
        let network = match Cidr::new(base, prefix) {
            Ok(network) => network,
            Err(error) => {
                let text = error.to_string();
                let at = text.find("use ").unwrap();
                let named = text[at + 4..].split(',').next().unwrap();
                cidr(named)
            }
        };
        prop_assert!(network.contains(base));
        prop_assert_eq!(cidr(&network.to_string()), network);
        let near: IpAddr = match base {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() ^ 1 << (flip % 32)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() ^ 1 << flip).into(),
        };
        // One that looks mapped after the flip is another family.
        for address in [other, near] {
            prop_assert_eq!(network.contains(address), slow_contains(base, prefix, address), "{} {}", network, address);
        }
        let bytes = rollcall_core::directory::Request {
            id: rollcall_core::ids::RequestId(1),
            command: put(AdmissionList { cidrs: [network].into(), ..AdmissionList::default() }),
        };
        prop_assert_eq!(rollcall_core::directory::Request::decode(&bytes.encode()).unwrap(), bytes);
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in ".{0,80}", digits in "[0-9a-f:./%]{0,50}") {
        for text in [&text, &digits] {
            if let Ok(network) = text.parse::<Cidr>() {
                prop_assert_eq!(cidr(&network.to_string()), network);
            }
            if let Ok(held) = text.parse::<TokenScope>() {
                prop_assert!(held.covers(&held));
            }
        }
    }

    /// More entries of a rule never refuse more, and an overlap changes nothing.
    #[test]
    fn lists_only_widen_with_their_entries(
        networks in proptest::collection::vec((any::<u32>(), 0_u8..=8), 1..6), who in any::<u32>(), wide in 0_usize..6,
    ) {
        let all: Vec<Cidr> = networks
            .iter()
            .map(|(bits, prefix)| {
                let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
                Cidr::new(Ipv4Addr::from_bits(bits & mask).into(), *prefix).unwrap()
            })
            .collect();
        let address = IpAddr::from(Ipv4Addr::from_bits(who));
        let candidate = Candidate { address: Some(address), ..Candidate::default() };
        let admits = |count: usize| {
            let cidrs = all.iter().take(count).copied().collect();
            AdmissionList { cidrs, ..AdmissionList::default() }.check(&candidate).is_ok()
        };
        let by_one = all.iter().any(|network| network.contains(address));
        prop_assert_eq!(admits(all.len()), by_one);
        let fewer = 1 + wide % all.len();
        prop_assert!(!admits(fewer) || admits(all.len()));
    }
}
