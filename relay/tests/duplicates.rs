//! Two live holders of one agent instance's identity (THREATS T52).
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::time::{Duration, SystemTime};

use common::{Agent, Bench, SOON, eventually, heard, limits};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use towline_relay::{
    duplicates::{Alarm, HANDED_OVER},
    registry::AuditFilter,
};
use towline_tunnel::{
    fault::Fault,
    ids::StreamKey,
    mux::{CloseReason, Connection, OpenRequest},
    proto::link::LONGEST_SILENCE,
    session::control::Control,
};

/// Another session with the key and certificate of this agent: a thief's, or its own next one.
async fn another(bench: &Bench, agent: &Agent) -> Connection {
    bench.beside(agent, &[]).await.0
}

#[tokio::test]
async fn t52_two_holders_of_an_instances_identity_raise_the_alarm_and_neither_displaces_the_other() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let thief = another(&bench, &agent).await;
    let mut alarm = Alarm::default();
    // Nothing was heard of the first since: it may be the same process, which has lost it.
    assert!(alarm.look(bench.relay.relay(), Duration::ZERO).await.is_empty());
    heard(&agent.connection).await;
    assert!(alarm.look(bench.relay.relay(), HANDED_OVER).await.is_empty(), "that may have been on its way");
    let found = alarm.look(bench.relay.relay(), Duration::ZERO).await;
    assert_eq!(found.iter().map(|of| of.instance).collect::<Vec<_>>(), [agent.instance]);
    assert_eq!(alarm.look(bench.relay.relay(), Duration::ZERO).await.len(), 1);

    assert_eq!(bench.metric("towline_relay_duplicate_holders").await, 1);
    assert_eq!(bench.metric("towline_relay_duplicate_alarms_total").await, 1, "told once");
    let registry = bench.relay.registry();
    let [instance] = &registry.instances().await.unwrap()[..] else { panic!("one instance") };
    assert!(instance.is_duplicate(SystemTime::now()), "the command line shows it");
    let all = AuditFilter { limit: 10, ..AuditFilter::default() };
    eventually("the audit has it", async || {
        let records = registry.audit(&all).await.unwrap();
        records.iter().any(|record| {
            record.verdict == "duplicate holder"
                && record.cluster == "edge"
                && record.user.contains(&agent.instance.to_string())
                && record.ended_at.is_some()
        })
    })
    .await;

    // Both are there, and both serve.
    bench.allow("alice", agent.cluster()).await;
    let client = bench.client("alice").await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream =
            client.connection.open(OpenRequest::new(StreamKey::random(), agent.cluster())).unwrap();
        stream.write_all(b"x").await.unwrap();
        streams.push(stream);
    }
    let (ours, theirs) =
        tokio::join!(timeout(SOON, agent.connection.accept()), timeout(SOON, thief.accept()));
    for accepted in [ours, theirs] {
        let (_, mut stream) = accepted.unwrap().unwrap();
        assert_eq!(timeout(SOON, stream.read_u8()).await.unwrap().unwrap(), b'x');
    }

    // Until an operator revokes the identity: then both go, and the cluster's own agent comes with another.
    assert!(registry.revoke_instance(agent.instance, SystemTime::now()).await.unwrap());
    for connection in [&agent.connection, &thief] {
        let closed = timeout(SOON, connection.closed()).await.expect("it ends");
        assert!(
            matches!(closed.reason, CloseReason::CertificateRefused | CloseReason::Detached),
            "{closed:?}"
        );
    }
    eventually("nobody is left", async || alarm.look(bench.relay.relay(), Duration::ZERO).await.is_empty())
        .await;
    assert_eq!(bench.metric("towline_relay_duplicate_holders").await, 0);
}

/// A session that may be silent for minutes is asked for a sign of life as soon as a stranger stands beside it.
#[tokio::test]
async fn t52_a_first_holder_that_keeps_silent_is_asked_whether_it_lives() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let silence = LONGEST_SILENCE;
    assert!(agent.connection.control(Control::KeepSilent { silence }.encode(0)));
    heard(&agent.connection).await;
    agent.connection.keep_silent(silence);
    let _thief = another(&bench, &agent).await;
    let mut alarm = Alarm::default();
    eventually("it was asked, and lives", async || {
        alarm.look(bench.relay.relay(), Duration::ZERO).await.len() == 1
    })
    .await;
}

/// That it goes is what a second holder says of itself; it stays, and would be overlooked for as long as it likes.
#[tokio::test]
async fn t52_a_second_holder_that_says_it_goes_raises_the_alarm_all_the_same() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let thief = another(&bench, &agent).await;
    thief.go_away(CloseReason::Draining, Duration::ZERO, "");
    heard(&thief).await;
    heard(&agent.connection).await;
    let found = Alarm::default().look(bench.relay.relay(), Duration::ZERO).await;
    assert_eq!(found.iter().map(|of| of.instance).collect::<Vec<_>>(), [agent.instance]);
}

/// Its next session begins when the relay has told it to go, or it says so itself: no alarm.
#[tokio::test]
async fn an_agent_that_changes_its_session_is_one_holder() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let next = another(&bench, &agent).await;
    agent.connection.go_away(CloseReason::Draining, Duration::ZERO, "");
    heard(&agent.connection).await;
    heard(&next).await;
    let found = Alarm::default().look(bench.relay.relay(), Duration::ZERO).await;
    assert!(found.is_empty(), "{found:?}");
}

/// A process says of its spare session, over both, that it is its own: no alarm.
#[tokio::test]
async fn an_agent_with_a_spare_session_is_one_holder() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let (spare, channel) = bench.beside(&agent, &[agent.channel]).await;
    assert!(agent.connection.control(Control::Beside { channel }.encode(0)));
    for connection in [&agent.connection, &spare] {
        heard(connection).await;
    }
    let found = Alarm::default().look(bench.relay.relay(), Duration::ZERO).await;
    assert!(found.is_empty(), "{found:?}");
}

/// Who has copied a key may know its holder's channel (logs have it), and can say that it stands beside that; nobody says so over
/// the holder's own session.
#[tokio::test]
async fn t52_a_second_holder_that_says_it_is_a_spare_raises_the_alarm_all_the_same() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let (spare, channel) = bench.beside(&agent, &[agent.channel]).await;
    agent.connection.control(Control::Beside { channel }.encode(0));
    let (thief, stolen) = bench.beside(&agent, &[agent.channel, channel]).await;
    // It claims the others as well, over its own.
    for channel in [agent.channel, channel] {
        thief.control(Control::Beside { channel }.encode(0));
    }
    for connection in [&thief, &agent.connection, &spare] {
        heard(connection).await;
    }
    let found = Alarm::default().look(bench.relay.relay(), Duration::ZERO).await;
    let [duplicate] = &found[..] else { panic!("{found:?}") };
    assert_eq!((duplicate.instance, duplicate.later.channel()), (agent.instance, stolen));

    // Nor can it end the holder's session in the holder's name.
    thief.control(Control::Gone { channel: agent.channel }.encode(0));
    heard(&thief).await;
    heard(&agent.connection).await;
    assert!(agent.connection.is_open());
}

/// One that came first, while the cluster's own agent was away, and then claims that one's session.
#[tokio::test]
async fn t52_a_second_holder_that_came_first_raises_the_alarm_all_the_same() {
    let bench = Bench::new(limits()).await;
    let thief = bench.agent("edge").await;
    let (own, channel) = bench.beside(&thief, &[]).await;
    thief.connection.control(Control::Beside { channel }.encode(0));
    heard(&own).await;
    heard(&thief.connection).await;
    assert_eq!(Alarm::default().look(bench.relay.relay(), Duration::ZERO).await.len(), 1);
}

/// Whoever leaves before they could be found out has left something behind all the same.
#[tokio::test]
async fn t52_a_second_holder_that_comes_and_goes_raises_the_alarm_all_the_same() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let thief = another(&bench, &agent).await;
    heard(&thief).await;
    thief.close();
    let sessions = bench.relay.relay().sessions();
    eventually("it is gone", async || sessions.all().len() == 1).await;
    heard(&agent.connection).await;
    let found = Alarm::default().look(bench.relay.relay(), Duration::ZERO).await;
    assert_eq!(found.iter().map(|of| of.instance).collect::<Vec<_>>(), [agent.instance]);
}

/// A spare session that was lost, and one whose agent never learned that it began: no alarm.
#[tokio::test]
async fn sessions_of_an_agents_own_that_were_lost_are_no_second_holder() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let (spare, channel) = bench.beside(&agent, &[agent.channel]).await;
    heard(&spare).await;
    spare.close();
    assert!(agent.connection.control(Control::Beside { channel }.encode(0)));
    // Nobody says of this one that it is theirs: nobody knows of it.
    let beside = [agent.channel];
    let unheard = bench.still(agent.identify(false, &beside)).await;
    let sessions = bench.relay.relay().sessions();
    let stands = || sessions.all().iter().any(|conn| conn.channel() == unheard.welcome.channel);
    eventually("it stands", async || stands()).await;
    drop(unheard);
    eventually("both are gone", async || sessions.all().len() == 1).await;
    heard(&agent.connection).await;
    let found = Alarm::default().look(bench.relay.relay(), Duration::ZERO).await;
    assert!(found.is_empty(), "{found:?}");
}

/// One that nobody speaks on may be an agent's that never learned of it; three in a row are not.
#[tokio::test]
async fn t52_a_second_holder_that_comes_and_goes_without_a_word_raises_the_alarm() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let sessions = bench.relay.relay().sessions();
    for count in 1..=3 {
        let thief = bench.still(agent.identify(false, &[])).await;
        let stands = || sessions.all().iter().any(|conn| conn.channel() == thief.welcome.channel);
        eventually("it stands", async || stands()).await;
        drop(thief);
        eventually("it is gone", async || sessions.all().len() == 1).await;
        heard(&agent.connection).await;
        let found = Alarm::default().look(bench.relay.relay(), Duration::ZERO).await;
        assert_eq!(found.len(), usize::from(count == 3), "{count}: {found:?}");
    }
}

/// Eight that know each other are one holder as far as anybody can see; the cluster's own agent then finds no place.
#[tokio::test]
async fn t52_a_second_holder_that_takes_all_places_raises_the_alarm() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let mut held = vec![(agent.connection.clone(), agent.channel)];
    for _ in 1..8 {
        let known: Vec<_> = held.iter().map(|(_, channel)| *channel).collect();
        let (connection, channel) = bench.beside(&agent, &known[known.len().saturating_sub(4)..]).await;
        for (other, of) in &held {
            other.control(Control::Beside { channel }.encode(0));
            connection.control(Control::Beside { channel: *of }.encode(0));
        }
        held.push((connection, channel));
    }
    let refused = bench.session(agent.identify(false, &[]), agent.instance).await.unwrap_err();
    assert_eq!(refused.fault, Fault::RelayLimit);
    let found = Alarm::default().look(bench.relay.relay(), HANDED_OVER).await;
    assert_eq!(found.iter().map(|of| of.instance).collect::<Vec<_>>(), [agent.instance]);
}
