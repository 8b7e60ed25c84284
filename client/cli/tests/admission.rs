//! Admission lists and tokens by the command line, against real servers.

mod support;

use rollcall_jepsen::lab::{Cluster, ClusterOptions};
use support::Rollcall;

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_put_shown_kept_and_taken_away_and_the_refused_are_listed() {
    let cluster = Cluster::start(3).await.unwrap();
    let addresses = cluster.addresses();
    let rollcall = Rollcall::at(&addresses);
    rollcall.ok(
        "group put prod --auto-create --admit-cidr 10.1.0.0/16 --admit-cidr ::1 --admit-environment prod",
    );
    let list = || rollcall.json("group show prod")["group"]["settings"]["admission"].clone();
    let listed = serde_json::json!({
        "cidrs": ["10.1.0.0/16", "::1/128"], "scopes": [], "environments": ["prod"], "dry_run": false
    });
    assert_eq!(list(), listed);
    let shown = rollcall.ok("group show prod");
    assert!(
        shown.contains("from 10.1.0.0/16, ::1/128; of environment prod"),
        "{shown}"
    );

    // Each server remembers what came to its own door.
    for (address, environment) in [
        (&addresses[0], "test"),
        (&addresses[1], "prod"),
        (&addresses[1], "prod"),
    ] {
        let one = Rollcall::at(std::slice::from_ref(address));
        let words = format!(
            "node register prod/feed --address 10.0.0.1:80 --kind static --environment {environment}"
        );
        let refused = one.fails(&words, 1);
        assert!(
            refused.contains("RC-403") && refused.contains("127.0.0.1"),
            "{refused}"
        );
    }
    let refused = rollcall.json("group refused prod");
    let rows = refused["refused"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{refused}");
    assert_eq!(
        (&rows[0]["count"], &rows[0]["environment"]),
        (&2.into(), &"prod".into()),
        "the last first"
    );
    assert_eq!(
        (&rows[1]["rule"], &rows[1]["node"]),
        (&"address".into(), &"feed/10.0.0.1:80".into())
    );
    assert_ne!(rows[0]["server"], rows[1]["server"]);
    let table = rollcall.ok("group refused prod -o wide");
    assert!(
        table.contains("REASON") && table.contains("is in none of its networks"),
        "{table}"
    );
    assert_eq!(rollcall.ok("group refused test"), "");

    // A put that names none of it leaves it alone; a rule that is named takes the place of what it said.
    rollcall.ok("group put prod --services-max 7");
    assert_eq!(list(), listed);
    rollcall.ok("group put prod --admit-cidr any --admission-dry-run");
    let dry = serde_json::json!({"cidrs": [], "scopes": [], "environments": ["prod"], "dry_run": true});
    assert_eq!(list(), dry);
    rollcall.ok("node register prod/feed --address 10.0.0.1:80 --kind static");
    rollcall.ok("group put prod --admission-dry-run=false");
    rollcall.fails("node register prod/feed --address 10.0.0.2:80 --kind static", 1);
    rollcall.ok("node register prod/feed --address 10.0.0.2:80 --kind static --environment prod");
    rollcall.ok("group put prod --admit-environment any");
    assert!(rollcall.ok("group show prod").contains("everyone"));
    let garbage = rollcall.fails("group put prod --admit-cidr 10.0.0.1/8", 2);
    assert!(garbage.contains("use 10.0.0.0/8"), "{garbage}");
    rollcall.fails("group put prod --admit-scope Admin", 2);

    let stranger = rollcall.fails("node list prod/feed --token stranger", 1);
    assert!(
        stranger.contains("RC-401") && !stranger.contains("stranger"),
        "{stranger}"
    );
    // Of one service and of a prefix: none of them waits for what will not come.
    for target in ["prod/feed", "prod/"] {
        let stranger = rollcall.fails(&format!("watch {target} --token stranger --timeout 60s"), 1);
        assert!(
            stranger.contains("RC-401") && !stranger.contains("stranger"),
            "{stranger}"
        );
    }
    let shown = rollcall
        .command("group list --token s3cret --help")
        .output()
        .unwrap();
    assert!(!String::from_utf8(shown.stdout).unwrap().contains("s3cret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_shows_the_token_of_who_asks_to_every_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.toml");
    // That of "ops-secret".
    let hash = "32323cfa9ec9d62750daad0836a4cf3d7b60d23723b7852a529667deed01669f";
    let token = format!("[[token]]\nname = \"ops\"\nsha256 = {hash:?}\nscopes = [\"admin\"]\n");
    std::fs::write(&path, token).unwrap();
    let cluster = Cluster::start_with(ClusterOptions {
        arguments: vec!["--set".into(), format!("tokens.path={}", path.display())],
        ..ClusterOptions::servers(2)
    })
    .await
    .unwrap();
    let rollcall = Rollcall::at(&cluster.addresses());
    rollcall.ok("group put prod --token ops-secret");
    rollcall.ok("service put prod/feed --token ops-secret");
    let rehearsal = rollcall.json("storm rehearse --service prod/feed --token ops-secret");
    assert_eq!(
        (
            &rehearsal["complete"],
            rehearsal["servers"].as_array().unwrap().len()
        ),
        (&true.into(), 2),
        "{rehearsal}"
    );
    let refused = rollcall.fails("storm rehearse --service prod/feed", 1);
    assert!(refused.contains("token"), "{refused}");
}
