from segmenter_tester import BaseSegmenterTester


class TestUnetPlusPlus(BaseSegmenterTester):
    architecture = "unetplusplus"
