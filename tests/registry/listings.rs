//! Tags and repositories, page by page.

use crate::node;
use larder_harness::{Image, Registry};

/// Follows the Link headers from `path`; gives the entries of each page.
async fn pages(registry: &Registry, path: &str, field: &str) -> Vec<Vec<String>> {
    let (mut pages, mut next) = (Vec::new(), Some(path.to_owned()));
    while let Some(path) = next {
        let answer = registry.get(&path).await.expect(200, &path);
        let entries =
            answer.json()[field].as_array().expect("a list").iter().map(|entry| entry.as_str().expect("a text").to_owned()).collect();
        pages.push(entries);
        let link = answer.header("link");
        next = link.split(['<', '>']).nth(1).map(str::to_owned);
        assert_eq!(next.is_some(), link.contains("rel=\"next\""), "{link}");
        assert!(pages.len() < 20, "the pages never end");
    }
    pages
}

#[tokio::test]
async fn end_8a_8b_tags_come_sorted_and_in_pages() {
    let (_node, registry) = node().await;
    let image = Image::from_seed(1, &[10]);
    for tag in ["b", "a", "d", "C", "e", "0"] {
        registry.push_image("team/app", tag, &image).await;
    }
    let all = pages(&registry, "/v2/team/app/tags/list", "tags").await;
    assert_eq!(all.len(), 1);
    let mut sorted = all[0].clone();
    sorted.sort_by_key(|tag| (tag.to_lowercase(), tag.clone()));
    let mut bytewise = all[0].clone();
    bytewise.sort();
    assert!(all[0] == bytewise || all[0] == sorted, "not in a lexical order: {:?}", all[0]);
    for size in [1, 2, 3, 5, 6, 7] {
        let paged = pages(&registry, &format!("/v2/team/app/tags/list?n={size}"), "tags").await;
        assert!(paged.iter().all(|page| page.len() <= size), "n={size}: {paged:?}");
        assert_eq!(paged.concat(), all[0], "n={size}");
    }
    let after = pages(&registry, &format!("/v2/team/app/tags/list?last={}", all[0][2]), "tags").await;
    assert_eq!(after.concat(), all[0][3..]);
    registry.get("/v2/team/app/tags/list?n=0").await.expect(200, "a page of nothing");
    registry.get("/v2/team/none/tags/list").await.expect_error(404, "NAME_UNKNOWN", "tags of no repository");
}

#[tokio::test]
async fn s12_a_page_of_many_tags_costs_a_page() {
    let (node, registry) = node().await;
    let image = Image::from_seed(4, &[10]);
    registry.push_image("team/app", "first", &image).await;
    let before = node.memory_peak_bytes();
    // As many with each push as one may name.
    for hundred in 0..50 {
        let tags: Vec<_> = (0..100).map(|number| format!("tag=t{:04}", hundred * 100 + number)).collect();
        let reference = format!("{}?{}", image.digest(), tags.join("&"));
        registry.put_manifest("team/app", &reference, image.media_type(), image.manifest.clone()).await.expect(201, "push tags");
    }
    for (path, size) in
        [("/v2/team/app/tags/list", 1000), ("/v2/team/app/tags/list?n=5000", 1000), ("/v2/team/app/tags/list?n=7&last=t4990", 7)]
    {
        let answer = registry.get(path).await.expect(200, path);
        assert_eq!(answer.json()["tags"].as_array().map(Vec::len), Some(size), "{path}");
        assert!(answer.header("link").contains("rel=\"next\""), "{path}");
    }
    let all = pages(&registry, "/v2/team/app/tags/list", "tags").await;
    assert_eq!((all.len(), all.concat().len()), (6, 5001));
    assert!(all.concat().is_sorted());
    let grown = node.memory_peak_bytes() - before;
    assert!(grown < 100 << 20, "{grown} bytes");
}

#[tokio::test]
async fn the_catalog_names_every_repository_page_by_page() {
    let (_node, registry) = node().await;
    let names = ["a/one", "b", "b/two", "c-three", "d/e/f/four"];
    for name in names {
        registry.push_image(name, "v1", &Image::from_seed(2, &[10])).await;
    }
    assert_eq!(pages(&registry, "/v2/_catalog", "repositories").await, [names.map(str::to_owned).to_vec()]);
    assert_eq!(pages(&registry, "/v2/_catalog?n=2", "repositories").await.concat(), names);
    assert_eq!(pages(&registry, "/v2/_catalog?last=b", "repositories").await.concat(), names[2..]);
}

#[tokio::test]
async fn s11_bad_page_sizes_are_refused_and_huge_ones_are_capped() {
    let (_node, registry) = node().await;
    registry.push_image("team/app", "v1", &Image::from_seed(3, &[10])).await;
    for path in ["/v2/_catalog", "/v2/team/app/tags/list"] {
        for n in ["2147483648", "9223372036854775808", "99999999999999999999999999"] {
            registry.get(&format!("{path}?n={n}")).await.expect(200, "more than anybody has");
        }
        for n in ["-1", "abc", "1.5", "%00", "0x10"] {
            let answer = registry.get(&format!("{path}?n={n}")).await;
            answer.expect_error(400, "PAGINATION_NUMBER_INVALID", &format!("{path}?n={n}"));
        }
        for last in ["..%2f..", "%00", "%ff%fe", "UPPER%20CASE", &"x".repeat(5000)] {
            let answer = registry.get(&format!("{path}?last={last}")).await;
            assert!(matches!(answer.status, 200 | 400), "{path}?last={last}: {}", answer.status);
        }
    }
}
