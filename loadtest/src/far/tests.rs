use super::*;
use crate::{
    direct::Direct,
    near::{self, Http},
};

async fn end() -> (tempfile::TempDir, FarEnd) {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path()).unwrap();
    let end = FarEnd::start(certificates).await.unwrap();
    (folder, end)
}

#[tokio::test]
async fn gets_follow_one_another_on_one_connection() {
    let (_folder, end) = end().await;
    for path in [Direct::tls(&end), Direct::plain(&end)] {
        let mut http = Http::dial(&path).await.unwrap();
        for _ in 0..3 {
            assert_eq!(http.get(near::SMALL).await.unwrap(), SMALL.len());
        }
    }
}

#[tokio::test]
async fn raw_bytes_come_back_or_are_judged() {
    let (_folder, end) = end().await;
    let path = Direct::tls(&end);

    let mut echo = near::raw(&path, Verb::Echo).await.unwrap();
    echo.write_all(b"typed").await.unwrap();
    echo.flush().await.unwrap();
    let mut got = [0; 5];
    echo.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"typed");

    let pattern = Pattern::default();
    let mut source = near::raw(&path, Verb::Source(Some(200_000))).await.unwrap();
    let mut got = Vec::new();
    source.read_to_end(&mut got).await.unwrap();
    assert_eq!((got.len(), pattern.first_wrong(0, &got)), (200_000, None));

    for (spoilt, said) in [(None, "200000 whole"), (Some(70_000), "200000 wrong at 70000")] {
        let mut bytes = got.clone();
        if let Some(place) = spoilt {
            bytes[place] ^= 1;
        }
        let before = end.far().sunk();
        let mut sink = near::raw(&path, Verb::Sink).await.unwrap();
        sink.write_all(&bytes).await.unwrap();
        sink.shutdown().await.unwrap();
        let mut answer = String::new();
        sink.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, said);
        assert_eq!(end.far().sunk() - before, 200_000);
    }
}

#[test]
fn verbs_travel_in_the_query() {
    for verb in [Verb::Echo, Verb::Source(None), Verb::Source(Some(7)), Verb::Sink] {
        let path = verb.path();
        assert_eq!(Verb::of_query(path.split_once('?').unwrap().1), Some(verb));
    }
    assert_eq!(Verb::of_query("command=sh"), None);
}
