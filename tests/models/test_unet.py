from segmenter_tester import BaseSegmenterTester


class TestUnet(BaseSegmenterTester):
    architecture = "unet"
