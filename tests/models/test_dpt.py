from segmenter_tester import BaseSegmenterTester


class TestDPT(BaseSegmenterTester):
    architecture = "dpt"
    encoder = "test_vit"
    decoder_channels = 32
