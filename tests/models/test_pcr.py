from segmenter_tester import BaseSegmenterTester


class TestPCR(BaseSegmenterTester):
    architecture = "pcr"
    decoder_channels = 16
