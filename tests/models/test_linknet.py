from segmenter_tester import BaseSegmenterTester


class TestLinknet(BaseSegmenterTester):
    architecture = "linknet"
